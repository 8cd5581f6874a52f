"""Draws digits in the typefaces of matplotlib, with small random affine transforms."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

OVERSAMPLING = 2  # digits are drawn and transformed at twice the size, then averaged
EM = 0.97  # of the image's height: a digit is about 0.7 high
DEGREES, SHEAR, SHIFT = 12.0, 0.2, 0.12
SCALE = (0.8, 1.1)
CHUNK = 500  # images transformed at a time, which bounds the memory


def draw_typefaces(typefaces: Sequence[str], size: int) -> NDArray[np.uint8]:
    """The digits of each typeface, white on black: (T, 10, size, size) uint8.

    Args:
        typefaces: names of T files of matplotlib's folder `fonts/ttf`, without suffix.
        size: height and width in pixels.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), round(EM * size)) for name in typefaces]
    return np.stack([[draw(str(digit), font, size) for digit in range(10)] for font in fonts])


def draw(character: str, font: ImageFont.FreeTypeFont, size: int) -> NDArray[np.uint8]:
    """One character at the centre of a black image, (size, size) uint8."""
    image = Image.new("L", (size, size))
    left, top, right, bottom = font.getbbox(character)
    corner = ((size - left - right) / 2, (size - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
    return np.asarray(image)


def draw_digits(
    typefaces: Sequence[str], labels: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draws digits in random typefaces, each rotated, sheared, scaled and shifted a little.

    Args:
        typefaces: names of the files.
        labels: (N,) digits from 0 to 9.
        size: height and width in pixels.
        rng: draws typefaces and transforms.

    Returns:
        (N, size, size) uint8, white on black.
    """
    drawn = torch.from_numpy(draw_typefaces(typefaces, OVERSAMPLING * size))
    typeface = rng.integers(len(typefaces), size=len(labels))
    theta = torch.from_numpy(random_transforms(len(labels), rng))
    parts = []
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        images = drawn[typeface[part], labels[part], None].float()  # (n, 1, H, W)
        grid = F.affine_grid(theta[part], list(images.shape), align_corners=False)
        moved = F.avg_pool2d(F.grid_sample(images, grid, align_corners=False), OVERSAMPLING)
        parts.append(moved[:, 0].round().byte())
    return torch.cat(parts).numpy()


def random_transforms(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Affine transforms (N, 2, 3) as `affine_grid` takes them: from coordinates of the output to those of the input."""
    angle = rng.uniform(-np.radians(DEGREES), np.radians(DEGREES), count)
    slant, scale = rng.uniform(-SHEAR, SHEAR, count), rng.uniform(*SCALE, count)
    right, down = rng.uniform(-SHIFT, SHIFT, (2, count))
    sine, cosine = np.sin(angle) / scale, np.cos(angle) / scale
    rows = np.stack([cosine, cosine * slant - sine, right, sine, sine * slant + cosine, down], 1)
    return rows.reshape(-1, 2, 3).astype(np.float32)
