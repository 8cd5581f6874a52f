"""DM-ADA: adversarial domain adaptation with domain mixup (Xu et al., AAAI 2020, arXiv 1912.01805)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from lightning_recall.adaptation.batches import DomainBatch
from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.losses import class_loss, domain_loss, gaussian_kl, mixup_triplet_loss
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.optimization.optimizer_settings import OptimizerSettings

NETWORKS = ("discriminator", "generator", "classifier", "encoder")
"""names of the optimizers, in the order of `configure_optimizers`"""


@dataclass(frozen=True)
class DMADAWeights:
    """Weights in the encoder's loss; the defaults are those of the released code.

    Args:
        kl: of the KL divergences from the standard normal distribution.
        adversarial: of the losses of generated images.
        target: of generated target images, besides `adversarial`.
        mixed: of generated mixed images, besides `adversarial`.
    """

    kl: float = 1.0
    adversarial: float = 0.1
    target: float = 0.3
    mixed: float = 0.3


class Features(NamedTuple):
    """Features (B, 2 d) of both domains and of their mix, with the mixing ratio."""

    source: Tensor
    target: Tensor
    mixed: Tensor | None
    ratio: float


class DMADAModule(AdaptationModule):
    """An encoder, a classifier, a generator and a discriminator, trained against each other on mixed domains."""

    def __init__(
        self,
        encoder: nn.Module,
        classifier: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        num_classes: int,
        mixup: DomainMixup | None = DomainMixup(),
        weights: DMADAWeights = DMADAWeights(),
        noise_dim: int = 512,
        optimizer_settings: dict[str, OptimizerSettings] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, classifier, num_classes, **kwargs)
        self.generator = generator
        self.discriminator = discriminator
        self.mixup = mixup
        self.weights = weights
        self.noise_dim = noise_dim
        self.optimizer_settings = {name: (optimizer_settings or {}).get(name, OptimizerSettings()) for name in NETWORKS}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Steps the discriminator; then generator, classifier and encoder, on gradients at equal weights."""
        parts = self.checked(batch)
        features, fakes = self.generate(parts)
        losses = {"discriminator_loss": self.discriminator_loss(parts, fakes, features.ratio)}
        self.optimize({"discriminator": losses["discriminator_loss"]})
        with frozen(self.discriminator):
            losses |= self.other_losses(parts, features, fakes)
            self.optimize({name: losses[f"{name}_loss"] for name in NETWORKS[1:]})
        return self.logged({"loss": losses["encoder_loss"], **losses})

    def generate(self, parts: DomainBatch) -> tuple[Features, dict[str, Tensor]]:
        """Features of both domains and their mix, and an image generated from each."""
        generator = self.batch_generator()
        ratio = 1.0 if self.mixup is None else self.mixup.draw(generator)
        source, target = self.encode(parts.source), self.encode(parts.target)
        mixed = None
        if self.mixup is not None and "feature" in self.mixup.levels:
            mixed = self.mixup.mix(source, target, ratio)
        is_target = torch.full_like(parts.labels, self.num_classes)
        source_condition, target_condition = (
            F.one_hot(labels, self.num_classes + 1).to(source.dtype) for labels in (parts.labels, is_target)
        )
        fakes = {
            "source": self.generate_image(source, source_condition, generator),
            "target": self.generate_image(target, target_condition, generator),
        }
        if self.mixup is not None and mixed is not None:
            condition = self.mixup.mix(source_condition, target_condition, ratio)
            fakes["mixed"] = self.generate_image(mixed, condition, generator)
        return Features(source, target, mixed, ratio), fakes

    def generate_image(self, features: Tensor, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, 3, H, W) between -1 and 1 from features (B, 2 d) and conditions (B, K + 1)."""
        noise = local_noise(len(features), self.noise_dim, generator).to(features)
        images: Tensor = self.generator(torch.cat([features, condition.to(features), noise], dim=1))
        return images

    def discriminator_loss(self, parts: DomainBatch, fakes: dict[str, Tensor], ratio: float) -> Tensor:
        """The loss of the discriminator; gradients do not reach the generator."""
        real = self.discriminator(2 * parts.source - 1)
        loss = class_loss(real.classes, parts.labels) + domain_loss(real.source, 1.0)
        for images in fakes.values():
            loss = loss + domain_loss(self.discriminator(images.detach()).source, 0.0)
        if self.mixup is not None and "pixel" in self.mixup.levels:
            mixed = self.discriminator(2 * self.mixup.mix(parts.source, parts.target, ratio) - 1)
            target = self.discriminator(2 * parts.target - 1)
            triplet = mixup_triplet_loss(mixed.embedding, real.embedding, target.embedding, ratio)
            loss = loss + domain_loss(mixed.source, ratio) + triplet
        return loss

    def other_losses(self, parts: DomainBatch, features: Features, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of generator, classifier and encoder, judged by the discriminator after its step."""
        judged = {name: self.discriminator(images) for name, images in fakes.items()}
        class_of_fakes = class_loss(judged["source"].classes, parts.labels)
        real = {name: domain_loss(judgement.source, 1.0) for name, judgement in judged.items()}
        mixed = real.get("mixed", features.source.new_zeros(()))
        classifier_loss = class_loss(self.classifier(features.source), parts.labels)
        kl = gaussian_kl(features.source) + gaussian_kl(features.target)
        adversarial = class_of_fakes + self.weights.target * real["target"] + self.weights.mixed * mixed
        return {
            "generator_loss": class_of_fakes + real["source"] + mixed,
            "classifier_loss": classifier_loss,
            "encoder_loss": self.weights.kl * kl + classifier_loss + self.weights.adversarial * adversarial,
        }

    def configure_optimizers(self) -> Any:
        """Adam for each network, with the released code's rates; the generator's rate is constant."""
        networks = [getattr(self, name) for name in NETWORKS]
        optimizers = [torch.optim.Adam(network.parameters(), 5e-4, betas=(0.8, 0.999)) for network in networks]
        schedulers = [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, inverse_decay()), "interval": "step"}
            for name, optimizer in zip(NETWORKS, optimizers, strict=True)
            if name != "generator"
        ]
        return optimizers, schedulers


def inverse_decay(rate: float = 1e-4) -> Callable[[int], float]:
    """The schedule of the released code: 1 / (1 + rate * step)."""
    return lambda step: 1 / (1 + rate * step)


def local_noise(size: int, dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise (size, dim): this process's rows of the noise of the whole batch."""
    is_distributed = distributed.is_available() and distributed.is_initialized()
    rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if is_distributed else (0, 1)
    return torch.randn(world_size * size, dim, generator=generator)[rank * size : (rank + 1) * size]


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Context manager in which the parameters of a network need no gradient."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
