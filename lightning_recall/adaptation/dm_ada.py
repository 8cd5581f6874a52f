"""DM-ADA: adversarial domain adaptation with domain mixup (Xu et al., AAAI 2020, arXiv 1912.01805)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.adaptation.batches import DomainBatch
from lightning_recall.adaptation.domain_mixup import DomainMixup, mix_domains
from lightning_recall.adaptation.example_images import domain_images, to_uint8
from lightning_recall.adaptation.images import unit_range
from lightning_recall.adaptation.losses import class_loss, domain_loss, gaussian_kl, mixup_triplet_loss
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.adaptation.network_checks import (
    check_batch_size,
    check_class_logits,
    check_domain_logits,
    check_generated,
    check_input_dim,
)
from lightning_recall.adaptation.network_optimizers import (
    NETWORKS,
    NetworkOptimizer,
    check_no_shared_arguments,
    complete_optimizers,
)
from lightning_recall.adaptation.noise import local_noise
from lightning_recall.checks import check_integer, check_same
from lightning_recall.evaluation_mode import evaluation_mode
from lightning_recall.optimization import ManualOptimization


@dataclass(frozen=True)
class DMADAWeights:
    """Weights in the encoder's loss; the defaults are those of the released code.

    Args:
        kl: of the KL divergences from the standard normal distribution; at least 0.
        adversarial: of all losses of generated images; at least 0.
        target: of generated target images, multiplied by `adversarial`; at least 0.
        mixed: of generated mixed images, multiplied by `adversarial`; at least 0.

    Raises:
        ValueError: for a weight that is negative or not finite.
    """

    kl: float = 1.0
    adversarial: float = 0.1
    target: float = 0.3
    mixed: float = 0.3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"The weight {name} must be a finite number of at least 0, got {value}.")


RELEASED_MIXUP, RELEASED_WEIGHTS = DomainMixup(), DMADAWeights()


class Features(NamedTuple):
    """Features (B, 2 d) of both domains and of their mix, with the mixing ratio."""

    source: Tensor
    target: Tensor
    mixed: Tensor | None
    ratio: float


class DMADAModule(AdaptationModule):
    """Trains four networks against each other on two domains and their mixes: DM-ADA (arXiv 1912.01805).

    With source images x_s with classes y, target images x_t, one ratio lambda for each batch, and z ~ N(0, I):

        x_m       = lambda x_s + (1 - lambda) x_t
        (mu, v)   = F(x), means and log-variances of source and target; they are features, nothing is sampled
        (mu, v)_m = lambda (mu, v)_s + (1 - lambda) (mu, v)_t
        X         = G(mu, v, c, z) for source, target and mix, with the condition c of K + 1 numbers:
                    e_y for X_s, e_K for X_t, lambda e_y + (1 - lambda) e_K for X_m

    D has three heads: classes D_c, the domain D_s (1 is a real source image, 0 is not), and an embedding D_e. Networks
    are stepped in this order on these losses:

        L_D = CE(D_c(x_s), y) + BCE(D_s(x_s), 1) + BCE(D_s(X_s), 0) + BCE(D_s(X_t), 0) + BCE(D_s(X_m), 0)
              + BCE(D_s(x_m), lambda) + mixup_triplet_loss(D_e(x_m), D_e(x_s), D_e(x_t), lambda)
        L_G = CE(D_c(X_s), y) + BCE(D_s(X_s), 1) + BCE(D_s(X_m), 1)
        L_C = CE(C(F(x_s)), y)
        L_F = kl (KL_s + KL_t) + L_C + adversarial (CE(D_c(X_s), y) + target BCE(D_s(X_t), 1) + mixed BCE(D_s(X_m), 1))

    These are the losses of the released code, where real target images enter L_D in the triplet loss only. Without the
    pixel level of `mixup` the second line of L_D is left out; without the feature level, the terms with X_m.

    Differences from the released code, which are our choice:

    - Gradients. D steps first, on detached fakes. The gradients of G, C and F are then computed with the new D, at the
      weights before any of their steps. The released code steps G and C before it computes the gradient of F through
      them: torch 0.4 silently mixed old and new weights, and later versions raise an error.
    - Logits instead of probabilities in the domain losses, which are exact in low precision too.
    - Checkpoints: choose them by the source or a validator without target labels, or take the last. The released code
      chooses by the accuracy on the target's test images.

    `global_step` counts the steps of all optimizers, 4 for each batch by default. `max_steps` of the Trainer and
    `every_n_train_steps` of ModelCheckpoint count these steps too. Logs `train/loss`, which is L_F, and
    `train/NETWORK_loss`.

    With several processes each has the same number of images, and networks without BatchNorm train as on one process.
    BatchNorm uses the statistics of each process's images; `sync_batchnorm=True` of the Trainer, for GPUs, those of the
    whole batch.

    Args:
        encoder: F, images (B, 3, H, W) -> (B, 2 d), means and log-variances, such as `GaussianEncoder`.
        classifier: C, features (B, 2 d) -> logits (B, K).
        generator: G, vectors (B, 2 d + K + 1 + `noise_dim`) -> images (B, 3, H, W) between -1 and 1.
        discriminator: D, images (B, 3, H, W) between -1 and 1 -> `Judgement`.
        num_classes: K, at least 2.
        mixup: draws lambda, and says what is mixed; None: no mixing.
        weights: weights in L_F.
        noise_dim: dimension of z; at least 0. The released code has 512.
        optimizers: "discriminator", "generator", "classifier" or "encoder" -> its optimizer, schedulers, clipping and
            accumulation; those that are left out, and None, are the released code's: see `NetworkOptimizer`.
        kwargs: passed to `AdaptationModule`. `head_lr`, and the arguments of `ManualOptimization`, such as optimizer,
            raise an error.

    Raises:
        ValueError: for networks that do not fit each other or the images, images of different shapes, a batch of one
            image with BatchNorm, and optimizer settings for all networks.

    >>> from lightning_recall.adaptation.models.digits import (
    ...     DigitDiscriminator, DigitEncoder, DigitGenerator, FeatureClassifier, GaussianEncoder
    ... )
    >>> encoder = GaussianEncoder(DigitEncoder())
    >>> generator = DigitGenerator(encoder.feature_dim + 10 + 1 + 512)
    >>> networks = encoder, FeatureClassifier(encoder.feature_dim, 10), generator, DigitDiscriminator(10)
    >>> clipped = {"generator": NetworkOptimizer(gradient_clip_val=1.0)}
    >>> DMADAModule(*networks, num_classes=10, optimizers=clipped)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    read_at_configuration: ClassVar[Sequence[str]] = (*ManualOptimization.read_at_configuration, "network_optimizers")

    def __init__(
        self,
        encoder: nn.Module,
        classifier: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        num_classes: int,
        mixup: DomainMixup | None = RELEASED_MIXUP,
        weights: DMADAWeights = RELEASED_WEIGHTS,
        noise_dim: int = 512,
        optimizers: dict[str, NetworkOptimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        check_no_shared_arguments(kwargs)
        super().__init__(encoder, classifier, num_classes, **kwargs)
        check_integer("noise_dim", noise_dim, 0)
        check_same(self, "discriminator", discriminator, ("num_classes",))
        check_input_dim(generator, getattr(encoder, "feature_dim", None), num_classes, noise_dim)
        self.generator = generator
        self.discriminator = discriminator
        self.mixup = mixup
        self.weights = weights
        self.noise_dim = noise_dim
        self.network_optimizers = complete_optimizers(optimizers)  # `optimizers` is a method of LightningModule
        self.optimizer_settings = {name: given.settings() for name, given in self.network_optimizers.items()}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Steps the discriminator; then generator, classifier and encoder, on gradients at equal weights."""
        parts = self.checked(batch, equal_sizes=self.mixup is not None)
        for domain, images in (("source", parts.source), ("target", parts.target)):
            check_batch_size(images, domain, self)
        features, fakes = self.generate(parts)
        losses = {"discriminator_loss": self.discriminator_loss(parts, fakes, features.ratio)}
        self.optimize({"discriminator": losses["discriminator_loss"]})
        with frozen(self.discriminator):
            losses |= self.other_losses(parts, features, fakes)
            self.optimize({name: losses[f"{name}_loss"] for name in NETWORKS[1:]})
        return self.logged({"loss": losses["encoder_loss"], **losses})

    def generate(self, parts: DomainBatch) -> tuple[Features, dict[str, Tensor]]:
        """Features of both domains and their mix, and an image generated from each: "source", "target", "mixed"."""
        generator = self.batch_generator()
        ratio = 1.0 if self.mixup is None else self.mixup.draw(generator)
        source, target = self.encode(parts.source), self.encode(parts.target)
        mixed = None
        if self.mixup is not None and "feature" in self.mixup.levels:
            mixed = self.mixup.mix(source, target, ratio)
        source_condition, target_condition = self.conditions(parts.labels, target)
        fakes = {
            "source": self.generate_image(source, source_condition, self.noise(source, generator)),
            "target": self.generate_image(target, target_condition, self.noise(target, generator)),
        }
        if self.mixup is not None and mixed is not None:
            condition = self.mixup.mix(source_condition, target_condition, ratio)
            fakes["mixed"] = self.generate_image(mixed, condition, self.noise(mixed, generator))
        for name, images in fakes.items():
            check_generated(images, len(target) if name == "target" else len(source), parts.source)
        return Features(source, target, mixed, ratio), fakes

    def conditions(self, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot conditions (B, K + 1) of source labels (B,), and those of K for target features (B, 2 d)."""
        is_target = labels.new_full((len(target),), self.num_classes)
        one_hot = [F.one_hot(classes, self.num_classes + 1).to(target.dtype) for classes in (labels, is_target)]
        return one_hot[0], one_hot[1]

    def noise(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal noise (B, noise_dim) for features (B, 2 d)."""
        return local_noise(len(features), self.noise_dim, generator)

    def generate_image(self, features: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        """Images (B, 3, H, W) between -1 and 1 from features (B, 2 d), conditions (B, K + 1) and noise."""
        images: Tensor = self.generator(torch.cat([features, condition.to(features), noise.to(features)], dim=1))
        return images

    def discriminator_loss(self, parts: DomainBatch, fakes: dict[str, Tensor], ratio: float) -> Tensor:
        """The loss of the discriminator; gradients do not reach the generator."""
        real = self.discriminator(2 * parts.source - 1)
        check_class_logits(real.classes, len(parts.source), self.num_classes, "discriminator")
        check_domain_logits(real.source, len(parts.source))
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
        classifier_loss = class_loss(self.classify(features.source), parts.labels)
        kl = gaussian_kl(features.source) + gaussian_kl(features.target)
        adversarial = class_of_fakes + self.weights.target * real["target"] + self.weights.mixed * mixed
        return {
            "generator_loss": class_of_fakes + real["source"] + mixed,
            "classifier_loss": classifier_loss,
            "encoder_loss": self.weights.kl * kl + classifier_loss + self.weights.adversarial * adversarial,
        }

    def example_images(
        self, source_images: Tensor, labels: Tensor, target_images: Tensor, ratios: Sequence[float]
    ) -> dict[str, Tensor]:
        """Images for a picture: both domains, their mixes, and what the generator makes of each.

        All generated images have the same noise at each call. The networks are in evaluation mode.

        Args:
            source_images: (B, 3, H, W), uint8 or between 0 and 1.
            labels: classes (B,) of the source images.
            target_images: (B, 3, H, W), uint8 or between 0 and 1.
            ratios: share of the source in each mix, from 0 to 1.

        Returns:
            uint8 images (B, 3, H, W) on the module's device: "source", "target", "mixed RATIO" for each ratio,
            "generated source", "generated target", and "generated mixed RATIO" for each ratio.

        Raises:
            ValueError: for different shapes, or a ratio outside [0, 1].
        """
        source, target = (unit_range(part.to(self.device), self.dtype) for part in (source_images, target_images))
        images = domain_images(source, target, ratios)
        with evaluation_mode(self), torch.no_grad():
            ends = self.encode(source), self.encode(target)
            noise = torch.randn(len(source), self.noise_dim, generator=torch.Generator().manual_seed(self.seed))
            given = self.conditions(labels.to(self.device), ends[1])
            inputs = {"source": (ends[0], given[0]), "target": (ends[1], given[1])}
            for ratio in ratios:
                inputs[f"mixed {ratio:g}"] = (mix_domains(*ends, ratio), mix_domains(*given, ratio))
            for name, (features, condition) in inputs.items():
                images[f"generated {name}"] = to_uint8((self.generate_image(features, condition, noise) + 1) / 2)
        return images

    def configure_optimizers(self) -> Any:
        """The optimizer of each network and its schedulers: see `NetworkOptimizer`."""
        built = [given.build(name, getattr(self, name)) for name, given in self.network_optimizers.items()]
        return [optimizer for optimizer, _ in built], [config for _, configs in built for config in configs]


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
