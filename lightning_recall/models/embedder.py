"""Maps images to unit-norm embeddings: a backbone, pooling, a projection, L2 normalisation."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recall.checks import check_integer
from lightning_recall.models.pooling import GeM

CHECKED_BATCHES = 20  # later batches on a GPU are not checked: reading a value synchronises with the GPU
OVERSHOOT = 0.25  # tolerance around [0, 1]: bicubic resizing overshoots by up to 0.2; normalised images go below -0.3
MAX_NORMALISED = 20.0  # larger values are unnormalised pixels in 0 to 255


def timm_backbone(name: str, pretrained: bool | str) -> tuple[nn.Module, bool, int]:
    """Returns a timm model without classifier, whether it outputs feature maps, and the number of channels C.

    Convnets output maps (B, C, H, W). Other models, such as ViTs and models with channels-last maps, use timm's own
    pooling and output (B, C).

    Raises:
        ValueError: for a name that timm does not know, and weights that cannot be loaded.
    """
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name}*")[:5]
        hint = f"Similar: {', '.join(similar)}." if similar else "See timm.list_models()."
        raise ValueError(f"timm has no model named {name!r}. {hint}")
    channels = num_feature_map_channels(name)
    if channels:
        return load_timm(name, pretrained, global_pool=""), True, channels
    model = load_timm(name, pretrained)
    return model, False, getattr(model, "head_hidden_size", model.num_features)


def load_timm(name: str, pretrained: bool | str, **kwargs: Any) -> Any:
    """A timm model without classifier: randomly initialised, with pretrained weights, or with weights from a file."""
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise ValueError(
                f"pretrained must be true, false or the path of a weights file; no such file: {pretrained}."
            )
        # the custom loaders of timm's models read .npz files
        load_options = {} if pretrained.endswith(".npz") else {"custom_load": False}
        kwargs["pretrained_cfg_overlay"] = {"file": pretrained, **load_options}
    try:
        model: Any = timm.create_model(name, pretrained=bool(pretrained), num_classes=0, **kwargs)
        if isinstance(pretrained, str):
            reference: Any = timm.create_model(name, pretrained=True, num_classes=0, **kwargs)
            pairs = zip(model.named_parameters(), reference.parameters(), strict=True)
            # parameters absent from the file keep their random initialisation, which differs between two models
            missing = [key for (key, first), second in pairs if not torch.equal(first, second)]
            if missing:
                raise RuntimeError(f"{len(missing)} parameters are missing from the file, such as {missing[0]}.")
        return model
    except (OSError, RuntimeError, UnpicklingError) as error:
        if isinstance(pretrained, str):
            raise ValueError(f"{pretrained} does not contain the weights of {name}: {error}") from error
        raise ValueError(
            f"Loading the weights of {name} failed: {error} Download model.safetensors on another machine from "
            "https://huggingface.co/timm and pass its path as pretrained; or train from scratch with pretrained=false."
        ) from error


def num_feature_map_channels(name: str) -> int:
    """Returns the number of channels of a timm model's unpooled feature maps, or 0 if it has none.

    Runs on the meta device, which computes only shapes.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            model: Any = timm.create_model(name, num_classes=0, global_pool="").eval()
            maps = model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    except (AssertionError, RuntimeError, TypeError):  # the model does not support global_pool=""
        return 0
    known = {model.num_features, getattr(model, "head_hidden_size", model.num_features)}
    return int(maps.shape[1]) if maps.ndim == 4 and maps.shape[1] in known else 0


def check_mean_or_std(name: str, values: Sequence[float]) -> None:
    """Raises ValueError unless there is a value in [0, 1] (mean) or (0, 1] (std) for every channel."""
    if len(values) == 0 or not all(0 < value <= 1 or (name == "mean" and value == 0) for value in values):
        interval = "[0, 1]" if name == "mean" else "(0, 1]"
        raise ValueError(
            f"{name} must have one value in {interval} per channel, for pixels scaled to [0, 1], got {list(values)}."
        )


class ImageEmbedder(nn.Module):
    """Maps images to unit-norm embeddings: backbone, GeM, LayerNorm, linear projection, L2 normalisation.

    The architecture is that of Patel, Tolias, Matas, CVPR 2022 (arXiv 2108.11179). Images are uint8, or floats in
    [0, 1]. The model normalises them with the mean and std of the pretrained backbone. For images that are already
    normalised, pass mean=[0.0] and std=[1.0]. Greyscale images (B, 1, H, W) are expanded to RGB for colour backbones.

    Args:
        backbone: name of a timm model ("resnet50", "vit_base_patch16_224.augreg_in21k", ...), or a module that outputs
            (B, C) vectors or (B, C, H, W) maps and has an attribute `num_features` equal to C.
        embedding_dim: D, dimension of an embedding.
        pretrained: True loads timm's pretrained weights (downloaded); a path loads them from a .safetensors, .pth or
            .npz file; False initialises randomly.
        pooling: how maps become vectors: "gem", the generalised mean with a learned exponent, or "avg". None: "gem" for
            the maps of a timm convnet; other backbones are not pooled.
        norm: "layer" applies LayerNorm to the features before the projection, as in the paper; "batch" applies
            BatchNorm to the embeddings before L2, which increases the variance of similarities when training from
            scratch.
        freeze_batch_norm: keeps the backbone's BatchNorm statistics unchanged, also in train mode, as in the paper; its
            scale and shift are still trained. None: frozen if the backbone is a pretrained timm model. May be set
            later.
        mean: per-channel mean in [0, 1]; None: from the backbone's pretrained_cfg, or 0.5.
        std: per-channel standard deviation in (0, 1]; None: from the backbone's pretrained_cfg, or 0.5.

    Shapes: images (B, C, H, W) -> (B, embedding_dim), with unit L2 norm.

    Raises:
        ValueError: for a name that timm does not know, weights that cannot be loaded, a backbone without
            `num_features`, an `embedding_dim` below 1, a mean or std out of range, or if pooling is set for a timm
            model that outputs vectors; in `forward`, if dtype, channels or size do not match, or floats lie outside
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
        embedding_dim: int = 512,
        pretrained: bool | str = True,
        pooling: Literal["gem", "avg"] | None = None,
        norm: Literal["layer", "batch"] = "layer",
        freeze_batch_norm: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_integer("embedding_dim", embedding_dim, 1)
        if isinstance(backbone, str):
            self.backbone, has_maps, num_features = timm_backbone(backbone, pretrained)
            if pooling and not has_maps:
                raise ValueError(f"{backbone} outputs vectors: pooling must be None, got {pooling!r}.")
            pooling = pooling or ("gem" if has_maps else None)
            freeze_batch_norm = bool(pretrained) if freeze_batch_norm is None else freeze_batch_norm
        else:
            self.backbone, num_features = backbone, getattr(backbone, "num_features", 0)
        self.num_features = num_features
        self.in_channels: int | None = None  # only known for timm models
        if isinstance(backbone, str):
            config: Any = self.backbone.pretrained_cfg
            self.in_channels = config["input_size"][0]
        if not num_features:
            raise ValueError(
                f"{type(self.backbone).__name__} has no num_features attribute: set it to the number of channels C of "
                "its output, (B, C) or (B, C, H, W)."
            )
        self.pooling = {"gem": GeM(), "avg": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), None: nn.Identity()}[
            pooling
        ]
        linear = nn.Linear(num_features, embedding_dim)
        self.projection = (
            nn.Sequential(nn.LayerNorm(num_features), linear)
            if norm == "layer"
            else nn.Sequential(linear, nn.BatchNorm1d(embedding_dim))
        )
        config = getattr(self.backbone, "pretrained_cfg", {})
        for name, given in (("mean", mean), ("std", std)):
            if given is not None:
                check_mean_or_std(name, given)
            values = config.get(name, (0.5,)) if given is None else given
            self.register_buffer(name, torch.tensor([float(value) for value in values]).reshape(-1, 1, 1))  # (C, 1, 1)
        self.range_checks = 0
        self.is_pretrained = isinstance(backbone, str) and bool(pretrained)  # evaluation names the features by it
        self.freeze_batch_norm = bool(freeze_batch_norm)

    @property
    def freeze_batch_norm(self) -> bool:
        """Whether the backbone's BatchNorm statistics stay unchanged in train mode."""
        return self._freeze_batch_norm

    @freeze_batch_norm.setter
    def freeze_batch_norm(self, frozen: bool) -> None:
        self._freeze_batch_norm = frozen
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Unit-norm embeddings (B, D) of images (B, C, H, W), uint8 or floats in [0, 1]."""
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
        try:
            features = self.pooling(self.backbone((images - self.mean) / self.std))  # (B, num_features)
        except AssertionError as error:  # raised by timm transformers with a fixed input size
            raise ValueError(
                f"{type(self.backbone).__name__} does not accept images of shape {tuple(images.shape)}: {error}"
            ) from error
        if features.shape[1:] != (self.num_features,):
            raise ValueError(
                f"{type(self.backbone).__name__} outputs features of shape {tuple(features.shape)} for images of shape "
                f"{tuple(images.shape)}, but its num_features is {self.num_features}: use the backbone's input size, "
                "correct num_features, or set pooling."
            )
        return F.normalize(self.projection(features), dim=1)

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
