"""Random affine augmentation of a batch, with a different transform for each image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(
    images: Tensor, degrees: float = 10.0, translate: float = 0.12, scale: float = 0.08, shear: float = 0.3
) -> Tensor:
    """Applies a random affine transform to each image, about its centre; the fill is black.

    torchvision's RandomAffine draws one transform for a whole batch, and applying it per image is about fifty times
    slower at 32 x 32 pixels.

    Args:
        images: (B, C, H, W), uint8 or floating point, on any device.
        degrees: largest rotation to either side.
        translate: largest shift along each axis, as a fraction of the image size.
        scale: largest relative change in size.
        shear: largest horizontal shear, in pixels per pixel of height.

    Returns:
        Images of the same shape and dtype.
    """
    uniform = torch.rand(5, len(images), device=images.device) * 2 - 1  # (5, B) in [-1, 1]
    angle, scale_factor = uniform[0] * math.radians(degrees), 1 + uniform[1] * scale
    slant, right, down = uniform[2] * shear, uniform[3] * 2 * translate, uniform[4] * 2 * translate
    sine, cosine = angle.sin() / scale_factor, angle.cos() / scale_factor
    theta = torch.stack([cosine, cosine * slant - sine, right, sine, sine * slant + cosine, down], 1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    floats = images if images.is_floating_point() else images.float()
    moved = F.grid_sample(floats, grid.to(floats.dtype), align_corners=False)
    return moved if images.is_floating_point() else moved.round().to(images.dtype)
