"""Settings for loading and transforming images."""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torchvision.transforms import v2


@dataclass(frozen=True)
class ImageTransforms:
    """How an image file becomes a tensor (C, size, size) uint8.

    The defaults are those of the Recall@k surrogate paper: in training, a random resized crop and a random flip; in
    evaluation, the shorter side is resized to `resize` and the centre is cropped.

    Args:
        size: output height and width in pixels.
        resize: shorter side before the centre crop in pixels, at least `size`.
        longest_side: in evaluation, downscale the longer side to at most this many pixels instead of a centre crop;
            images of different sizes need batch size 1. None: centre crop.
        min_scale: smallest area fraction of the random crop, above 0 and at most 1.
        flip: whether training images are flipped horizontally at random.
        mode: "RGB", or "L" for one grey channel.
        train_transform: a transform of (C, H, W) uint8 tensors, for example of torchvision's v2, that replaces the
            random crop and flip.
        eval_transform: a transform that replaces the centre crop.
        on_error: how unreadable files are handled. "skip": training uses another image of the class; evaluation
            ignores the image; a warning is issued in both cases. "raise": stops with an error.

    Raises:
        ValueError: for values out of range.
    """

    size: int = 224
    resize: int = 256
    longest_side: int | None = None
    min_scale: float = 0.08
    flip: bool = True
    mode: Literal["RGB", "L"] = "RGB"
    train_transform: nn.Module | None = None
    eval_transform: nn.Module | None = None
    on_error: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        if not (1 <= self.size <= self.resize and 0 < self.min_scale <= 1):
            raise ValueError(
                f"size, resize and min_scale must satisfy 1 <= size <= resize and 0 < min_scale <= 1, got "
                f"size={self.size}, resize={self.resize}, min_scale={self.min_scale}."
            )
        if self.mode not in ("RGB", "L") or self.on_error not in ("skip", "raise"):
            raise ValueError(
                f'mode must be "RGB" or "L", on_error "skip" or "raise", got {self.mode!r} and {self.on_error!r}.'
            )

    def transform(self, training: bool) -> nn.Module:
        """The training or the evaluation transform."""
        if training:
            crop = v2.RandomResizedCrop(self.size, scale=(self.min_scale, 1.0), antialias=True)
            return self.train_transform or (v2.Compose([crop, v2.RandomHorizontalFlip()]) if self.flip else crop)
        if self.longest_side is not None:
            return self.eval_transform or nn.Identity()
        return self.eval_transform or v2.Compose([v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)])
