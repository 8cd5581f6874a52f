"""Maps images to unit-norm embeddings: a backbone, pooling, a projection, L2 normalisation."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recall.checks import check_integer
from lightning_recall.constructor_arguments import record_arguments
from lightning_recall.models.backbones import Pooling, crashes_channels_last, own_backbone, rejection, timm_backbone
from lightning_recall.models.pooling import ClassToken, GeM, as_maps
from lightning_recall.models.sources import model_arguments, without_source

CHECKED_BATCHES = 20  # later batches on a GPU are not checked: reading a value synchronises with the GPU
OVERSHOOT = 0.25  # tolerance around [0, 1]: bicubic resizing overshoots by up to 0.2; normalised images go below -0.3
MAX_NORMALISED = 20.0  # larger values are unnormalised pixels in 0 to 255


def check_mean_or_std(name: str, values: Sequence[float]) -> None:
    """Raises ValueError unless there is a value in [0, 1] (mean) or (0, 1] (std) for every channel."""
    if len(values) == 0 or not all(0 < value <= 1 or (name == "mean" and value == 0) for value in values):
        interval = "[0, 1]" if name == "mean" else "(0, 1]"
        raise ValueError(
            f"{name} must have one value in {interval} per channel, for pixels scaled to [0, 1], got {list(values)}."
        )


def build_projection(num_features: int, embedding_dim: int | Sequence[int] | None, norm: str | None) -> nn.Module:
    """Layers from features (B, num_features) to embeddings before L2: none, a linear layer, or an MLP with GELU.

    Raises:
        ValueError: for a width below 1, an unknown `norm`, and norm="batch" without layers.
    """
    if norm not in ("layer", "batch", None):
        raise ValueError(f"norm must be layer, batch or null, got {norm!r}.")
    if embedding_dim is None:
        if norm == "batch":
            raise ValueError("norm: batch needs an embedding_dim: with embedding_dim: null there is no projection.")
        return nn.Identity()
    widths = list(embedding_dim) if isinstance(embedding_dim, Sequence) else [embedding_dim]
    if not widths:
        raise ValueError("embedding_dim must be an integer, a list of one or more integers, or null, got [].")
    for width in widths:
        check_integer("embedding_dim", width, 1)
    layers: list[nn.Module] = [nn.LayerNorm(num_features)] if norm == "layer" else []
    for number, (before, width) in enumerate(zip([num_features, *widths], widths, strict=False)):
        layers += [nn.GELU()] if number else []
        layers.append(nn.Linear(before, width))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1])] if norm == "batch" else []))


@record_arguments
class ImageEmbedder(nn.Module):
    """Maps images to unit-norm embeddings: backbone, GeM, LayerNorm, linear projection, L2 normalisation.

    The architecture is that of Patel, Tolias, Matas, CVPR 2022 (arXiv 2108.11179). Images are uint8, or floats in
    [0, 1]. The model normalises them with the mean and std of the pretrained backbone. For images that are already
    normalised, pass mean=[0.0] and std=[1.0]. Greyscale images (B, 1, H, W) are expanded to RGB for colour backbones.

    Args:
        backbone: name of a timm model ("resnet50", "vit_base_patch16_224.augreg_in21k", "hf-hub:owner/name",
            "local-dir:/folder" with config.json and weights), or a module that outputs (B, C) vectors or (B, C, H, W)
            maps and has an attribute `num_features` equal to C.
        embedding_dim: D, dimension of an embedding. A list such as [1024, 512]: widths of an MLP with GELU. None: the
            embeddings are the normalised features, without projection.
        pretrained: True loads timm's pretrained weights (downloaded, or from the local-dir); a path loads them from a
            .safetensors, .pth or .npz file; False initialises randomly.
        pooling: how maps or tokens become vectors: "gem", the generalised mean with a learned exponent; "avg"; "token",
            the class token. Transformers average over patch tokens; "gem" clamps negative activations. None: "gem" for
            the maps of a timm convnet, timm's own pooling (class token, average, attention) for other timm models; a
            module of your own is not pooled.
        norm: "layer" applies LayerNorm to the features before the projection, as in the paper; "batch" applies
            BatchNorm to the embeddings before L2, which increases the variance of similarities when training from
            scratch; None: neither. Not used without projection.
        freeze_batch_norm: keeps the backbone's BatchNorm statistics unchanged, also in train mode, as in the paper; its
            scale and shift are still trained. None: frozen if the backbone is a pretrained timm model. May be set
            later.
        mean: per-channel mean in [0, 1]; None: from the backbone's pretrained_cfg, or 0.5.
        std: per-channel standard deviation in (0, 1]; None: from the backbone's pretrained_cfg, or 0.5.
        backbone_kwargs: arguments of the timm model, such as {"img_size": 96} or {"drop_path_rate": 0.1}.
        channels_last: whether the backbone stores weights and activations channels-last, which convolutions compute
            faster; results are equal up to rounding. None: for timm convnets, except a few that crash torch on a CPU.

    Shapes: images (B, C, H, W) or features (B, num_features) -> (B, D), with unit L2 norm.

    Raises:
        ValueError: for a name that timm does not know, weights or `backbone_kwargs` that do not fit the model, a
            backbone without `num_features`, an `embedding_dim` below 1, a mean or std out of range, or a pooling that
            the model does not support; in `forward`, if dtype, channels or size do not match, or floats lie outside
            [-0.25, 1.25]. The range is checked for all batches on a CPU, the first 20 on a GPU, and never under
            `torch.compile` and `torch.export`.

    >>> from lightning_recall.models import SmallConvNet
    >>> embedder = ImageEmbedder(SmallConvNet(), embedding_dim=64, norm="batch")
    >>> embedder(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 64])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module | str = "resnet50",
        embedding_dim: int | Sequence[int] | None = 512,
        pretrained: bool | str = True,
        pooling: Pooling | None = None,
        norm: Literal["layer", "batch"] | None = "layer",
        freeze_batch_norm: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(backbone, str):
            built = timm_backbone(backbone, pretrained, pooling, backbone_kwargs or {})
            freeze_batch_norm = bool(pretrained) if freeze_batch_norm is None else freeze_batch_norm
        else:
            built = own_backbone(backbone, pooling, backbone_kwargs)
        self.model_args = model_arguments(backbone) if isinstance(backbone, str) else {}
        self.backbone, self.num_features = built.model, built.num_features
        self.layout, self.num_prefix_tokens = built.layout, built.num_prefix_tokens
        self.in_channels, self.image_size = built.in_channels, built.image_size
        has_maps = isinstance(backbone, str) and built.layout == "channels first"
        self.channels_last = has_maps and not crashes_channels_last(self.backbone)
        if channels_last is not None:
            self.channels_last = channels_last
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        self.pooling = {
            "gem": GeM(),
            "avg": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "token": ClassToken(),
            None: nn.Identity(),
        }[built.pooling]
        self.needs_maps = built.pooling in ("gem", "avg") and built.layout != "channels first"
        self.projection = build_projection(self.num_features, embedding_dim, norm)
        config = getattr(self.backbone, "pretrained_cfg", {})
        for name, given in (("mean", mean), ("std", std)):
            if given is not None:
                check_mean_or_std(name, given)
            values = config.get(name, (0.5,)) if given is None else given
            if given is None and self.in_channels is not None and len(values) != self.in_channels:
                values = [sum(values) / len(values)] * self.in_channels  # as timm.data does
            self.register_buffer(name, torch.tensor([float(value) for value in values]).reshape(-1, 1, 1))  # (C, 1, 1)
        self.range_checks = 0
        self.is_pretrained = isinstance(backbone, str) and bool(pretrained)  # evaluation names the features by it
        self.freeze_batch_norm = bool(freeze_batch_norm)

    def portable_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments that need neither the folder nor the repository of the backbone's model."""
        config: Any = getattr(self.backbone, "pretrained_cfg", {})
        return without_source(arguments, config, self.model_args, self.layout == "channels first")

    @property
    def head(self) -> nn.Module:
        """The layers after pooling: features (B, num_features) -> (B, D) before L2."""
        return self.projection

    @property
    def freeze_batch_norm(self) -> bool:
        """Whether the backbone's BatchNorm statistics stay unchanged in train mode."""
        return self._freeze_batch_norm

    @freeze_batch_norm.setter
    def freeze_batch_norm(self, frozen: bool) -> None:
        self._freeze_batch_norm = frozen
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Unit-norm embeddings (B, D) of images (B, C, H, W), uint8 or floats in [0, 1], or features (B, num_features).

        Features are what `features` returns.
        """
        features = images if images.ndim == 2 and images.is_floating_point() else self.features(images)
        if features.shape[1:] != (self.num_features,):
            raise ValueError(
                f"Features must be of shape (B, {self.num_features}), as {type(self.backbone).__name__} outputs, got "
                f"{tuple(features.shape)}."
            )
        return F.normalize(self.projection(features), dim=1)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, num_features) of images (B, C, H, W), without projection and normalisation."""
        images = self.normalise(images)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            output = self.backbone(images)
        except (AssertionError, RuntimeError, TypeError, IndexError) as error:  # what timm's models raise
            if not torch.compiler.is_compiling():
                self.check_image_size((images.shape[-2], images.shape[-1]))
            if isinstance(error, AssertionError):
                raise ValueError(
                    f"{type(self.backbone).__name__} does not accept images of shape {tuple(images.shape)}: {error}"
                ) from error
            raise
        if self.needs_maps:
            output = as_maps(output, self.layout, self.num_prefix_tokens)
        features: Tensor = self.pooling(output)  # (B, num_features)
        if features.shape[1:] != (self.num_features,):
            raise ValueError(
                f"{type(self.backbone).__name__} outputs features of shape {tuple(features.shape)} for images of shape "
                f"{tuple(images.shape)}, but its num_features is {self.num_features}: use the backbone's input size, "
                "correct num_features, or set pooling."
            )
        return features

    def check_image_size(self, size: int | tuple[int, int]) -> None:
        """Raises ValueError if the backbone accepts its own `image_size` but not this one; computes only shapes.

        Args:
            size: height and width in pixels, or one number for both.
        """
        height, width = (size, size) if isinstance(size, int) else size
        own, channels = self.image_size, self.in_channels or len(self.mean)
        if own is None or (height, width) == (own, own):
            return
        reason = rejection(self.backbone, (2, channels, height, width))
        if reason and not rejection(self.backbone, (2, channels, own, own)):
            img_size = height if height == width else [height, width]
            raise ValueError(
                f"{type(self.backbone).__name__} does not accept images of {height} x {width} pixels ({reason}): use "
                f"{own} x {own}, or, if the model has this argument, backbone_kwargs: {{img_size: {img_size}}}."
            )

    def normalise(self, images: Tensor) -> Tensor:
        """Images as floats, from which the backbone's mean is subtracted and which are divided by its std."""
        self.check_channels(images)
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        elif images.is_floating_point():
            self.check_range(images)
            images = images.to(self.mean.dtype)
        else:
            raise ValueError(
                f"Images must be uint8, or floats in [0, 1], got {images.dtype}: convert with .to(torch.uint8) if they "
                "hold 0 to 255, otherwise divide by the maximum value of the pixel format."
            )
        return (images - self.mean) / self.std

    def check_channels(self, images: Tensor) -> None:
        """Raises ValueError if the number of channels differs from the backbone's (if known)."""
        mean_channels = len(self.mean)
        expected_channels = self.in_channels or (mean_channels if mean_channels > 1 else None)
        if expected_channels is None:
            return
        # subtracting the per-channel mean broadcasts greyscale to colour
        allowed = {1, expected_channels} if mean_channels == expected_channels else {expected_channels}
        if images.ndim < 4 or images.shape[-3] not in allowed:
            counts = " or ".join(map(str, sorted(allowed)))
            raise ValueError(
                f"Images must be of shape (B, C, H, W) with C = {counts}, as {type(self.backbone).__name__} "
                f"expects, got {tuple(images.shape)}."
            )

    def check_range(self, images: Tensor) -> None:
        """Raises ValueError for floats far outside [0, 1]; on a GPU only the first batches are checked."""
        if torch.compiler.is_compiling() or not images.numel():
            return
        if images.device.type != "cpu":  # on a CPU the check takes 0.2 percent of a ResNet-18 forward pass
            if self.range_checks == CHECKED_BATCHES:
                return
            self.range_checks += 1
        low, high = (bound.item() for bound in images.detach().aminmax())
        expects_normalised = not self.mean.any() and bool((self.std == 1).all())
        lowest, highest = (-MAX_NORMALISED, MAX_NORMALISED) if expects_normalised else (-OVERSHOOT, 1 + OVERSHOOT)
        if low < lowest or high > highest:
            raise ValueError(
                f"Images must be uint8, or floats in [0, 1], got floats from {low:.3g} to {high:.3g}: divide images in "
                "[0, 255] by 255; if images are already normalised, pass mean=[0.0], std=[1.0] to the embedder."
            )

    def train(self, mode: bool = True) -> Self:
        """Sets train mode; frozen BatchNorm layers of the backbone stay in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
