"""Settings of the transforms that change an image and its mask together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from lightning_recall.segmentation.data.masks import IGNORED_PIXEL

PADDING_COLOR = (124, 116, 104)
"""mean colour of ImageNet: about 0 once the image is normalised"""
MAX_SCALE = 16
MAX_HUE = 0.1  # the hue changes by at most a tenth of the colour circle


def resize_both(image: Tensor, mask: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Resizes an image (3, H, W) bilinearly with antialiasing, and its mask (H, W) to the nearest pixel.

    Mask pixels are sampled at the centres of the new pixels (`NEAREST_EXACT`). torchvision's `resize` samples masks
    at their upper left corners, which shifts a mask by half a pixel against its image.
    """
    if list(image.shape[-2:]) == list(size):
        return image, mask
    pixels: Tensor = tv.resize(image.as_subclass(Tensor), list(size), antialias=True)
    ids: Tensor = tv.resize(mask.as_subclass(Tensor)[None], list(size), InterpolationMode.NEAREST_EXACT)
    return pixels, ids[0]


class RandomScaleCrop(nn.Module):
    """Scales an image and its mask by a random factor and cuts out a random part.

    Where the scaled image is smaller than the part, the image is padded with `PADDING_COLOR` and the mask with
    `IGNORED_PIXEL`, below and to the right. The factor is uniform in its logarithm, so that shrinking and enlarging are
    equally frequent.

    Args:
        size: (height, width) in pixels of the result; None: the size of the image.
        scale: smallest and largest factor.
        resize: (height, width) to which the whole image is resized first; None: not resized.
    """

    def __init__(
        self, size: tuple[int, int] | None, scale: tuple[float, float], resize: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.size, self.scale, self.resize = size, scale, resize

    def forward(self, image: Tensor, mask: Tensor) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Transforms an image (3, H, W) and its mask (H, W)."""
        resized = self.resize or image.shape[-2:]
        height, width = self.size or resized
        low, high = torch.tensor(self.scale, dtype=torch.float64).log().tolist()
        factor = float(torch.empty(()).uniform_(low, high).exp())
        # Crops first, since resizing the whole image costs more.
        tall = max(1, round(height / factor * image.shape[-2] / resized[0]))
        wide = max(1, round(width / factor * image.shape[-1] / resized[1]))
        bottom, right = max(0, tall - image.shape[-2]), max(0, wide - image.shape[-1])
        top = int(torch.randint(image.shape[-2] + bottom - tall + 1, ()))
        left = int(torch.randint(image.shape[-1] + right - wide + 1, ()))
        pixels = image.as_subclass(Tensor)[:, top : top + tall, left : left + wide]
        ids = mask.as_subclass(Tensor)[top : top + tall, left : left + wide]
        if bottom or right:
            pixels = tv.pad(pixels, [0, 0, right, bottom], fill=list(PADDING_COLOR))
            ids = tv.pad(ids[None], [0, 0, right, bottom], fill=IGNORED_PIXEL)[0]
        pixels, ids = resize_both(pixels, ids, (height, width))
        return tv_tensors.Image(pixels), tv_tensors.Mask(ids)


class ResizeBoth(nn.Module):
    """Resizes an image and its mask to `size` (height, width) in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor, mask: Tensor) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Resizes an image (3, H, W) and its mask (H, W)."""
        pixels, ids = resize_both(image, mask, self.size)
        return tv_tensors.Image(pixels), tv_tensors.Mask(ids)


class Unchanged(nn.Module):
    """Returns image and mask as they are."""

    def forward(self, image: Any, mask: Any) -> tuple[Any, Any]:
        """Returns its arguments."""
        return image, mask


@dataclass(frozen=True)
class SegmentationTransforms:
    """How an image (3, H, W) uint8 and its mask (H, W) uint8 are transformed together.

    In training: random scale, random crop, random flip, and random colours if `color_jitter` is set. In evaluation: the
    whole image. `resize` comes before, in both.

    Args:
        crop_size: size of training images in pixels, (height, width) or one number for both; None: the size of each
            image, so that images of different sizes need `batch_size` 1.
        resize: size to which all images and masks are resized first, (height, width) or one number for both. Scores
            are computed at this size. None: images keep their sizes; then evaluation of images of different sizes
            needs `eval_batch_size` 1.
        scale: smallest and largest factor of the random scale. (0.5, 2.0) is usual for street scenes; (1.0, 1.0)
            turns it off.
        flip: whether training images are flipped horizontally at random.
        color_jitter: how much brightness, contrast and saturation vary: by factors between 1 - color_jitter and
            1 + color_jitter. The hue varies by up to a tenth of the colour circle times it. From 0 (off) to 1.
        train_transform: a transform of (image, mask), for example of torchvision's v2, that replaces all random
            transforms. It gets `tv_tensors`, the mask with `IGNORED_PIXEL` (255) for ignored pixels; pad masks with it.
        eval_transform: a transform of (image, mask) that replaces `resize` in evaluation.

    Raises:
        ValueError: for values out of range.

    >>> image, mask = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
    >>> image, mask = SegmentationTransforms(crop_size=32).transform(training=True)(image, mask)
    >>> tuple(image.shape), tuple(mask.shape)
    ((3, 32, 32), (32, 32))
    """

    crop_size: int | tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    color_jitter: float = 0.0
    train_transform: nn.Module | None = None
    eval_transform: nn.Module | None = None

    def __post_init__(self) -> None:
        for name in ("crop_size", "resize"):
            size: Any = getattr(self, name)
            pair = as_pair(size)
            if pair is not None and not (len(pair) == 2 and min(pair) > 0):
                raise ValueError(
                    f"transforms.{name} must be a number of pixels, or height and width, each at least 1, got {size!r}."
                )
        scale: Any = self.scale
        if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= MAX_SCALE):
            raise ValueError(
                f"transforms.scale must be two numbers, 0 < smallest <= largest <= {MAX_SCALE}, got {self.scale!r}."
            )
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"transforms.color_jitter must be from 0 to 1, got {self.color_jitter}.")

    @property
    def keeps_train_size(self) -> bool:
        """Whether training images keep their sizes."""
        return self.crop_size is None and self.resize is None and self.train_transform is None

    @property
    def keeps_eval_size(self) -> bool:
        """Whether images keep their sizes in evaluation."""
        return self.resize is None and self.eval_transform is None

    def transform(self, training: bool) -> nn.Module:
        """The training or the evaluation transform: (image, mask) -> (image, mask)."""
        if not training:
            return self.eval_transform or (Unchanged() if self.resize is None else ResizeBoth(as_pair(self.resize)))
        if self.train_transform is not None:
            return self.train_transform
        parts: list[nn.Module] = [RandomScaleCrop(as_pair(self.crop_size), self.scale, as_pair(self.resize))]
        if self.flip:
            parts.append(v2.RandomHorizontalFlip())
        if self.color_jitter:
            jitter = self.color_jitter
            parts.append(v2.ColorJitter(jitter, jitter, jitter, hue=MAX_HUE * jitter))
        composed: nn.Module = v2.Compose(parts)
        return composed


def as_pair(size: Any) -> Any:
    """Height and width of a size that may be one number for both; None stays None."""
    return (size, size) if isinstance(size, int) else size
