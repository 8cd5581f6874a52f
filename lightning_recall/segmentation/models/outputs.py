"""Calls a segmentation network, and reads the logits from what it returns."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.checks import first_line


def output_of(network: nn.Module, images: Tensor) -> Any:
    """What a network returns for images (B, 3, H, W).

    Raises:
        ValueError: for images of another shape, and if the network says that the size must be divisible by a number, as
            many of segmentation_models_pytorch do.
    """
    if images.ndim != 4:
        raise ValueError(f"Images must be of shape (B, 3, H, W), got {tuple(images.shape)}.")
    try:
        return network(images)
    except RuntimeError as error:
        if "divisible by" not in str(error):
            raise
        height, width = images.shape[-2:]
        raise ValueError(
            f"{type(network).__name__} does not accept images of {height} x {width} pixels (height x width): "
            f"{first_line(error).rstrip('.')}. Resize the images: transforms.resize of the data module, in training "
            "also transforms.crop_size."
        ) from error


def logits_of(output: Any, size: tuple[int, int]) -> Tensor:
    """The logits of a network at the size of its images.

    Networks often predict at a fraction of the image size; their logits are enlarged bilinearly.

    Args:
        output: logits (B, C, h, w), or a mapping with the key "out", as torchvision's segmentation networks return.
        size: (H, W), height and width of the images in pixels.

    Returns:
        Logits (B, C, H, W).

    Raises:
        ValueError: for another type, a mapping without "out", logits of another shape, integers, or a map that is
            larger than the images.

    >>> import torch
    >>> logits_of({"out": torch.zeros(2, 5, 8, 12), "aux": torch.zeros(2, 5, 8, 12)}, (32, 48)).shape
    torch.Size([2, 5, 32, 48])
    """
    if isinstance(output, Mapping):
        if "out" not in output:
            raise ValueError(
                f'The network returned a dict without the key "out", which must hold the logits: {sorted(output)}.'
            )
        output = output["out"]
    if not isinstance(output, Tensor):
        raise ValueError(
            'The network must return logits (B, C, H, W), or a dict that holds them under the key "out", got '
            f"{type(output).__name__}: wrap the network in a module that returns one of both."
        )
    if output.ndim != 4 or not output.is_floating_point():
        raise ValueError(
            "The network must return floating-point logits of shape (B, C, H, W), got "
            f"{output.dtype} {tuple(output.shape)}."
        )
    height, width = output.shape[-2:]
    if height > size[0] or width > size[1] or 0 in (height, width):
        raise ValueError(
            f"The network returned logits of {height} x {width} pixels for images of {size[0]} x {size[1]}: they must "
            "not be empty or larger than the images."
        )
    return output if (height, width) == tuple(size) else enlarge(output, size)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) -> (B, C, *size) by bilinear interpolation, as torchvision's segmentation networks do it."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
