"""Images to unit embeddings: a backbone, pooling, a projection, L2 normalisation."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from lightning_recall.models.pooling import GeM

WATCHED_BATCHES = 20  # later ones on a GPU are not looked at: reading a value makes the processor wait for the device
OVERSHOOT = 0.25  # beyond [0, 1]: bicubic resizing gives up to 0.2; normalised images of low contrast start at -0.3
NORMALISED = 20.0  # no normalised pixel is larger, pixels in 0 to 255 are


def timm_backbone(name: str, pretrained: bool | str) -> tuple[nn.Module, bool, int]:
    """A timm model without its classifier, whether it gives feature maps (B, C, H, W), and C.

    Convnets give maps; all others (class tokens, channels-last maps) pool as they were built to, to (B, C).

    Raises:
        ValueError: for a name that timm does not know, and weights that cannot be had.
    """
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name}*")[:5]
        hint = f"Similar: {', '.join(similar)}." if similar else "timm.list_models() tells those it knows."
        raise ValueError(f"timm knows no model {name!r}. {hint}")
    channels = map_channels(name)
    if channels:
        return load_timm(name, pretrained, global_pool=""), True, channels
    model = load_timm(name, pretrained)
    return model, False, getattr(model, "head_hidden_size", model.num_features)


def load_timm(name: str, pretrained: bool | str, **kwargs: Any) -> Any:
    """A timm model without its classifier: new, with its published weights, or with those of a file."""
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise ValueError(f"pretrained must be true, false or a file of weights, but there is no file {pretrained}.")
        other_format = {} if pretrained.endswith(".npz") else {"custom_load": False}  # what some are published as
        kwargs["pretrained_cfg_overlay"] = {"file": pretrained, **other_format}
    try:
        model: Any = timm.create_model(name, pretrained=bool(pretrained), num_classes=0, **kwargs)
        if isinstance(pretrained, str):
            again: Any = timm.create_model(name, pretrained=True, num_classes=0, **kwargs)
            pairs = zip(model.named_parameters(), again.parameters(), strict=True)
            lacking = [key for (key, one), other in pairs if not torch.equal(one, other)]  # timm leaves them at random
            if lacking:
                raise RuntimeError(f"it lacks {len(lacking)} parameters, such as {lacking[0]}.")
        return model
    except (OSError, RuntimeError, UnpicklingError) as error:
        if isinstance(pretrained, str):
            raise ValueError(f"{pretrained} does not hold the weights of {name}: {error}") from error
        raise ValueError(
            f"The weights of {name} cannot be fetched: {error} Fetch them elsewhere, from https://huggingface.co/timm "
            "(model.safetensors), and give the file as pretrained; or start from scratch with pretrained=false."
        ) from error


def map_channels(name: str) -> int:
    """C of the maps (B, C, H, W) that a timm model gives when it does not pool, 0 if none; computes only shapes."""
    try:
        with torch.device("meta"), torch.no_grad():
            model: Any = timm.create_model(name, num_classes=0, global_pool="").eval()
            maps = model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    except (AssertionError, RuntimeError, TypeError):  # it cannot do without its pooling
        return 0
    known = {model.num_features, getattr(model, "head_hidden_size", model.num_features)}
    return int(maps.shape[1]) if maps.ndim == 4 and maps.shape[1] in known else 0


def checked_pixel_statistic(name: str, given: Sequence[float]) -> Sequence[float]:
    """The mean or the standard deviation of pixels in [0, 1], one number for each channel.

    Raises:
        ValueError: for numbers out of range.
    """
    if len(given) == 0 or not all(0 < value <= 1 or (name == "mean" and value == 0) for value in given):
        raise ValueError(
            f"{name} must hold numbers {'from' if name == 'mean' else 'above'} 0 to 1, those of pixels in [0, 1], got "
            f"{list(given)}."
        )
    return given


class ImageEmbedder(nn.Module):
    """Embeds images on the unit sphere, as in the paper: backbone, GeM, LayerNorm, linear projection, L2.

    Images come as uint8, or as floats in [0, 1], and are normalised here, on the device, with the mean and standard
    deviation that the backbone was trained with. For images that are normalised already, give mean 0 and std 1. Grey
    images (B, 1, H, W) also go into a colour backbone.

    Args:
        backbone: name of a timm model ("resnet50", "vit_base_patch16_224.augreg_in21k", ...), or a module that gives
            (B, C) vectors or (B, C, H, W) maps and tells C as `num_features`.
        embedding_dim: D, length of an embedding.
        pretrained: whether a timm backbone starts from its published weights, which timm downloads; or a file of
            them, .safetensors, .pth or .npz as published, for machines without a network.
        pooling: how maps become vectors: "gem", the generalised mean with a learned exponent, or "avg". None: "gem" for
            the maps of a timm convnet; the vectors of any other backbone are taken as they are.
        norm: "layer" normalises the features before the projection, as published; "batch" normalises the embeddings
            before L2, which spreads the similarities of an untrained network so that training from scratch starts.
        freeze_batch_norm: keeps the backbone's BatchNorm statistics as they are, also in train mode, as published;
            its scale and shift still learn. None: frozen if `pretrained` and a timm name. May be set later.
        mean: per-channel mean in [0, 1]; None: the backbone's own, 0.5 where it tells none.
        std: per-channel standard deviation; None: the backbone's own, 0.5 where it tells none.

    Shapes: images (B, C, H, W) -> (B, embedding_dim), each row of length 1.

    Raises:
        ValueError: for a name that timm does not know, weights that cannot be had, a backbone without `num_features`,
            an `embedding_dim` below 1, a mean or std out of range, or pooling for a timm model that gives vectors; in
            `forward` for images of another dtype or number of channels, of a size that the backbone does not take, and
            for floats outside [-0.25, 1.25]: on a CPU all batches of floats are looked at, on a GPU the first 20, and
            none under `torch.compile` and `torch.export`.

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
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}.")
        if isinstance(backbone, str):
            self.backbone, gives_maps, num_features = timm_backbone(backbone, pretrained)
            if pooling and not gives_maps:
                raise ValueError(f"{backbone} gives vectors: pooling must be None, got {pooling!r}.")
            pooling = pooling or ("gem" if gives_maps else None)
            freeze_batch_norm = bool(pretrained) if freeze_batch_norm is None else freeze_batch_norm
        else:
            self.backbone, num_features = backbone, getattr(backbone, "num_features", 0)
        self.num_features = num_features
        self.in_channels: int | None = None  # known of timm's
        if isinstance(backbone, str):
            config: Any = self.backbone.pretrained_cfg
            self.in_channels = config["input_size"][0]
        if not num_features:
            raise ValueError(
                f"{type(self.backbone).__name__} does not tell how many features it gives: "
                "set its attribute num_features to C of its output (B, C) or (B, C, H, W)."
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
            values = config.get(name, (0.5,)) if given is None else checked_pixel_statistic(name, given)
            self.register_buffer(name, torch.tensor([float(value) for value in values]).reshape(-1, 1, 1))  # (C, 1, 1)
        self.batches_watched = 0
        self.freeze_batch_norm = bool(freeze_batch_norm)

    @property
    def freeze_batch_norm(self) -> bool:
        """Whether the backbone's BatchNorm statistics stay as they are in train mode."""
        return self._freeze_batch_norm

    @freeze_batch_norm.setter
    def freeze_batch_norm(self, frozen: bool) -> None:
        self._freeze_batch_norm = frozen
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, D) of images (B, C, H, W), uint8 or floats in [0, 1]."""
        self.check_channels(images)
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        elif images.is_floating_point():
            self.check_range(images)
            images = images.to(self.mean.dtype)
        else:
            raise ValueError(
                f"Images must be uint8, or floats in [0, 1], got {images.dtype}: convert with .to(torch.uint8) if they "
                "hold 0 to 255, else divide them by the largest value that their format has."
            )
        try:
            features = self.pooling(self.backbone((images - self.mean) / self.std))  # (B, num_features)
        except AssertionError as error:  # timm's, of transformers that take one size
            raise ValueError(
                f"{type(self.backbone).__name__} does not take images of shape {tuple(images.shape)}: {error}"
            ) from error
        if features.shape[1:] != (self.num_features,):
            raise ValueError(
                f"{type(self.backbone).__name__} gives features of shape {tuple(features.shape)} for images of shape "
                f"{tuple(images.shape)}, but its num_features is {self.num_features}: give images of the size that it "
                "is made for, correct num_features, or pool maps."
            )
        return F.normalize(self.projection(features), dim=1)

    def check_channels(self, images: Tensor) -> None:
        """Raises ValueError for images of another number of channels than the backbone's, where that is known."""
        own = len(self.mean)
        wanted = self.in_channels or (own if own > 1 else None)
        if wanted is None:
            return
        allowed = {1, wanted} if own == wanted else {wanted}  # the mean turns grey images into colour
        if images.ndim < 4 or images.shape[-3] not in allowed:
            counts = " or ".join(map(str, sorted(allowed)))
            raise ValueError(
                f"Images must be of shape (B, C, H, W) with C = {counts}, as {type(self.backbone).__name__} takes "
                f"them, got {tuple(images.shape)}."
            )

    def check_range(self, images: Tensor) -> None:
        """Raises ValueError for floats far outside [0, 1]; on a GPU only the first batches are looked at."""
        if torch.compiler.is_compiling() or not images.numel():
            return
        if images.device.type != "cpu":  # there the search costs 0.2 percent of a ResNet-18's forward
            if self.batches_watched == WATCHED_BATCHES:
                return
            self.batches_watched += 1
        low, high = (bound.item() for bound in images.detach().aminmax())
        given_normalised = not self.mean.any() and bool((self.std == 1).all())
        lowest, highest = (-NORMALISED, NORMALISED) if given_normalised else (-OVERSHOOT, 1 + OVERSHOOT)
        if low < lowest or high > highest:
            raise ValueError(
                f"Images must be uint8, or floats in [0, 1], got floats from {low:.3g} to {high:.3g}: divide by 255 "
                "what goes to 255; if they are normalised already, give the embedder mean=[0.0] and std=[1.0]."
            )

    def train(self, mode: bool = True) -> Self:
        """Sets train mode; frozen BatchNorm layers of the backbone stay in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
