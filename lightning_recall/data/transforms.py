"""Settings for loading and transforming images."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import nn
from torchvision.transforms import v2

from lightning_recall.data.resampling import ChooseResampling, longest_side, random_crop, shorter_side

DEFAULT_SIZE = 224  # pixels
RESIZE_RATIO = 256 / 224  # of the paper, and of most pretrained networks
MAX_RESIZE_RATIO = 1.5  # above it, a centre crop shows less than 44 percent of a square image


@dataclass(frozen=True)
class ImageTransforms:
    """How an image file becomes a tensor (C, size, size) uint8.

    The defaults are those of the Recall@k surrogate paper: in training, a random resized crop and a random flip; in
    evaluation, the shorter side is resized to `resize` and the centre is cropped.

    Args:
        size: output height and width in pixels. None: the image size that the module in training expects
            (`image_size`), or 224 if it is unknown; a data module looks it up at setup.
        resize: in evaluation, shorter side before the centre crop in pixels, at least `size`. None: 256 / 224 of
            `size`.
        longest_side: in evaluation, downscale the longer side to at most this many pixels instead of a centre crop;
            images of different sizes need batch size 1. None: centre crop.
        min_scale: smallest area fraction of the random crop, above 0 and at most 1.
        flip: whether training images are flipped horizontally at random.
        mode: "RGB", or "L" for one grey channel.
        train_transform: a transform of (C, H, W) uint8 tensors, for example of torchvision's v2, that replaces the
            random crop and flip.
        eval_transform: a transform that replaces the centre crop.
        reducing_gap: RGB JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where the crop keeps at least this
            many times the pixels of the output per side, at least 1; named as in Pillow. Pixels then differ by 0.6 of
            255 levels on average. None: exact, full decoding. Custom transforms always get fully decoded images.
        on_error: how unreadable files are handled. "skip": training uses another image of the class; evaluation
            ignores the image; a warning is issued in both cases. "raise": stops with an error.

    Raises:
        ValueError: for values out of range.

    >>> ImageTransforms(size=96).for_model(None).resize
    110
    """

    size: int | None = None
    resize: int | None = None
    longest_side: int | None = None
    min_scale: float = 0.08
    flip: bool = True
    mode: Literal["RGB", "L"] = "RGB"
    train_transform: nn.Module | None = None
    eval_transform: nn.Module | None = None
    on_error: Literal["skip", "raise"] = "skip"
    reducing_gap: float | None = 2.0

    def __post_init__(self) -> None:
        least, size = self.size or 1, self.size if self.size is not None else 1
        if size < 1 or (self.resize is not None and self.resize < least) or not 0 < self.min_scale <= 1:
            raise ValueError(
                f"size, resize and min_scale must satisfy 1 <= size <= resize and 0 < min_scale <= 1, got "
                f"size={self.size}, resize={self.resize}, min_scale={self.min_scale}."
            )
        if self.mode not in ("RGB", "L") or self.on_error not in ("skip", "raise"):
            raise ValueError(
                f'mode must be "RGB" or "L", on_error "skip" or "raise", got {self.mode!r} and {self.on_error!r}.'
            )

        if self.reducing_gap is not None and not self.reducing_gap >= 1:
            raise ValueError(f"reducing_gap must be at least 1, or None, got {self.reducing_gap}.")

    def for_model(self, image_size: int | None) -> "ImageTransforms":
        """These settings with numbers for `size` and `resize`.

        Args:
            image_size: height and width in pixels that the model expects; None: unknown.

        Raises:
            ValueError: if `resize` is smaller than the size of the model.
        """
        size = self.size or image_size or DEFAULT_SIZE
        if self.resize is not None and self.resize < size:
            raise ValueError(
                f"transforms.resize={self.resize} is smaller than size={size}, which the model expects: omit resize, "
                "or set size too."
            )
        return replace(self, size=size, resize=self.resize or round(size * RESIZE_RATIO))

    @property
    def sees_only_the_middle(self) -> bool:
        """Whether the centre crop of evaluation leaves out most of an image; needs numbers for `size` and `resize`."""
        size, resize = self.evaluation_sizes
        crops = self.longest_side is None and self.eval_transform is None
        return crops and resize > MAX_RESIZE_RATIO * size

    @property
    def evaluation_sizes(self) -> tuple[int, int]:
        """Numbers of `size` and `resize`: 224 for an unknown size."""
        resolved = self.for_model(None)
        assert resolved.size is not None
        assert resolved.resize is not None
        return resolved.size, resolved.resize

    def steps(self, training: bool) -> tuple[ChooseResampling, nn.Module]:
        """The crop and resize, which are applied while an image is read, and the transform that follows."""
        size, resize = self.evaluation_sizes
        if training and self.train_transform is None:
            crop = v2.RandomResizedCrop(size, scale=(self.min_scale, 1.0), antialias=True)
            return partial(random_crop, crop), v2.RandomHorizontalFlip() if self.flip else nn.Identity()
        if not training and self.longest_side is None and self.eval_transform is None:
            return partial(shorter_side, resize), v2.CenterCrop(size)
        limit, custom = (None, self.train_transform) if training else (self.longest_side, self.eval_transform)
        return partial(longest_side, limit), custom or nn.Identity()
