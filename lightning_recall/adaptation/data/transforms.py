"""Transforms of photographs as the literature on domain adaptation uses them."""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torchvision.transforms import v2

from lightning_recall.data import ImageTransforms


@dataclass(frozen=True)
class PhotoTransforms(ImageTransforms):
    """How a photograph becomes a tensor (3, size, size) uint8.

    The defaults are those of DANN and of tllib's "ran.crop": both sides are resized to 256 pixels, so the aspect ratio
    may change; training uses a random crop of 224 pixels and a random flip, evaluation the centre crop.

    Args:
        size: output height and width in pixels.
        resize: height and width before the crop in pixels, at least `size`.
        crop: "random": a random part of `size`. "resized": a random part of at least `min_scale` of the area with
            another aspect ratio, resized to `size`, which is tllib's default.
        min_scale: smallest area fraction of the crop "resized".
        flip: whether training images are flipped horizontally at random.
        train_transform: a transform of (3, H, W) uint8 tensors that replaces those of training; its output must be
            (3, size, size).
        eval_transform: the same for evaluation.
        on_error: how unreadable files are handled. "raise": stops with an error. "skip": training uses another image,
            and in evaluation the image is black and has no label; a warning is issued in both cases.

    Raises:
        ValueError: for values out of range.

    >>> PhotoTransforms(size=96, resize=112).evaluation_sizes
    (96, 112)
    """

    size: int | None = 224
    resize: int | None = 256
    crop: Literal["random", "resized"] = "random"
    on_error: Literal["skip", "raise"] = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop not in ("random", "resized"):
            raise ValueError(f'crop must be "random" or "resized", got {self.crop!r}.')
        if self.longest_side is not None or self.mode != "RGB":
            raise ValueError(
                "Both domains have RGB images of one size: leave longest_side and mode at their defaults, got "
                f"{self.longest_side} and {self.mode!r}."
            )

    def transform(self, training: bool) -> nn.Module:
        """The training or the evaluation transform."""
        size, resize = self.evaluation_sizes
        whole: nn.Module = v2.Resize([resize, resize], antialias=True)
        if not training:
            return self.eval_transform or v2.Compose([whole, v2.CenterCrop(size)])
        scale = (self.min_scale, 1.0)
        part: nn.Module = (
            v2.RandomCrop(size) if self.crop == "random" else v2.RandomResizedCrop(size, scale, antialias=True)
        )
        layers: list[nn.Module] = [whole, part, v2.RandomHorizontalFlip()] if self.flip else [whole, part]
        return self.train_transform or nn.Sequential(*layers)
