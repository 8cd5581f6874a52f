"""The methods that the benchmark of domain adaptation compares, with the networks and settings of the released code."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from lightning_recall._lightning import seed_everything
from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.adaptation.dm_ada import DMADAModule, DMADAWeights
from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.models.dann import DANNClassifier, DANNEncoder
from lightning_recall.adaptation.models.digits import (
    DigitDiscriminator,
    DigitEncoder,
    DigitGenerator,
    FeatureClassifier,
    GaussianEncoder,
)
from lightning_recall.adaptation.models.discriminator import FeatureDiscriminator
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.adaptation.source_only import SourceOnlyModule

NUM_CLASSES = 10


def source_only(seed: int, kl: float, width: int) -> AdaptationModule:  # noqa: ARG001  # every method is built with the same arguments
    """Source only with the networks of DANN."""
    encoder = DANNEncoder()
    classifier = DANNClassifier(encoder.feature_dim, NUM_CLASSES)
    return SourceOnlyModule(encoder, classifier, NUM_CLASSES, optimizer=partial(torch.optim.Adam, lr=1e-3), seed=seed)


def dann(seed: int, kl: float, width: int, mixup: DomainMixup | None = None) -> AdaptationModule:  # noqa: ARG001  # as above
    """DANN, optionally with mixed features."""
    encoder = DANNEncoder()
    classifier = DANNClassifier(encoder.feature_dim, NUM_CLASSES)
    discriminator = FeatureDiscriminator(encoder.feature_dim, hidden_dims=[100])
    adam = partial(torch.optim.Adam, lr=1e-3)
    return DANNModule(encoder, classifier, discriminator, NUM_CLASSES, mixup, optimizer=adam, seed=seed)


def dm_ada_source_only(seed: int, kl: float, width: int) -> AdaptationModule:  # noqa: ARG001  # as above
    """Source only with the networks that the released code of DM-ADA has for it."""
    encoder = DigitEncoder(width)
    classifier = FeatureClassifier(encoder.feature_dim, NUM_CLASSES, 2 * width)
    adam = partial(torch.optim.Adam, lr=5e-4, betas=(0.8, 0.999))
    return SourceOnlyModule(encoder, classifier, NUM_CLASSES, optimizer=adam, seed=seed)


def dm_ada(seed: int, kl: float, width: int, mixup: DomainMixup | None = None) -> AdaptationModule:
    """DM-ADA; a width of 64 gives the released networks."""
    encoder = GaussianEncoder(DigitEncoder(width), 2 * width)
    noise_dim = 8 * width
    module = DMADAModule(
        encoder,
        FeatureClassifier(encoder.feature_dim, NUM_CLASSES, 2 * width),
        DigitGenerator(encoder.feature_dim + NUM_CLASSES + 1 + noise_dim, width),
        DigitDiscriminator(NUM_CLASSES, width, width),
        NUM_CLASSES,
        mixup,
        DMADAWeights(kl=kl),
        noise_dim,
        seed=seed,
    )
    module.discriminator.to(memory_format=torch.channels_last)
    return module


class Method(NamedTuple):
    """How a method is built from (seed, weight of the KL divergence, width), and the size of its images in pixels."""

    build: Callable[[int, float, int], AdaptationModule]
    image_size: int


METHODS = {
    "source only": Method(source_only, 28),
    "DANN": Method(dann, 28),
    "DANN + mixup": Method(partial(dann, mixup=DomainMixup(clip=0.3, levels=("feature",))), 28),
    "source only, DM-ADA networks": Method(dm_ada_source_only, 32),
    "DM-ADA without mixup": Method(dm_ada, 32),
    "DM-ADA": Method(partial(dm_ada, mixup=DomainMixup()), 32),
}


def build(method: str, seed: int, kl: float = 1.0, width: int = 64) -> AdaptationModule:
    """A module with initial weights drawn from a seed; kl and width matter for DM-ADA only."""
    seed_everything(seed, verbose=False)
    module = METHODS[method].build(seed, kl, width)
    module.encoder.to(memory_format=torch.channels_last)  # faster on CPUs
    return module
