"""Which part of an image is kept and to which size it is resized: known before the image is decoded."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torchvision.transforms import v2

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the upright image"""


class Resampling(NamedTuple):
    """A crop of an image, and the (height, width) that it is resized to."""

    crop: Box
    size: tuple[int, int]


ChooseResampling = Callable[[tuple[int, int], Box], Resampling]
"""(width, height) of the whole upright image, box to crop it to first -> crop inside the box, and size"""


def random_crop(transform: v2.RandomResizedCrop, _whole: tuple[int, int], box: Box) -> Resampling:
    """The crop that `transform` would draw for the pixels in the box, with the same random numbers."""
    left, top, right, bottom = box
    shape = torch.empty((1, bottom - top, right - left), device="meta")
    drawn = transform.make_params([shape])
    left, top = left + drawn["left"], top + drawn["top"]
    height, width = transform.size
    return Resampling((left, top, left + drawn["width"], top + drawn["height"]), (height, width))


def shorter_side(resize: int, _whole: tuple[int, int], box: Box) -> Resampling:
    """The whole box, resized so that its shorter side has `resize` pixels, as torchvision's `Resize` does."""
    height, width = box[3] - box[1], box[2] - box[0]
    size = (int(resize * height / width), resize) if width <= height else (resize, int(resize * width / height))
    return Resampling(box, size)


def longest_side(limit: int | None, whole: tuple[int, int], box: Box) -> Resampling:
    """The whole box, downscaled by as much as the whole image needs for a longer side of at most `limit` pixels."""
    height, width = box[3] - box[1], box[2] - box[0]
    scale = min(1.0, (limit or max(whole)) / max(whole))
    return Resampling(
        box, (max(1, round(height * scale)), max(1, round(width * scale))) if scale < 1 else (height, width)
    )
