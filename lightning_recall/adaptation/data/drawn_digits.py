"""Draws digits in the typefaces of matplotlib, with small random affine transforms."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 32  # pixels
DRAWN_SIZE = 64  # digits are drawn and transformed at twice the size, then averaged
FONT_SIZE = 62  # pixels per em: a digit is about 45 pixels high
DEGREES, SHEAR, SHIFT = 12.0, 0.2, 0.12
SCALE = (0.8, 1.1)
CHUNK = 500  # images transformed at a time, which bounds the memory


def draw_typefaces(typefaces: Sequence[str]) -> NDArray[np.uint8]:
    """The digits of each typeface, white on black: (T, 10, 64, 64) uint8.

    Args:
        typefaces: names of T files of matplotlib's folder `fonts/ttf`, without suffix.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), FONT_SIZE) for name in typefaces]
    return np.stack([[draw(str(digit), font) for digit in range(10)] for font in fonts])


def draw(character: str, font: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    """One character at the centre of a black image, (64, 64) uint8."""
    image = Image.new("L", (DRAWN_SIZE, DRAWN_SIZE))
    left, top, right, bottom = font.getbbox(character)
    corner = ((DRAWN_SIZE - left - right) / 2, (DRAWN_SIZE - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
    return np.asarray(image)


def draw_digits(typefaces: Sequence[str], labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws digits in random typefaces, each rotated, sheared, scaled and shifted a little.

    Args:
        typefaces: names of the files.
        labels: (N,) digits from 0 to 9.
        rng: draws typefaces and transforms.

    Returns:
        (N, 32, 32) uint8, white on black.
    """
    drawn = torch.from_numpy(draw_typefaces(typefaces))
    typeface = rng.integers(len(typefaces), size=len(labels))
    theta = torch.from_numpy(random_transforms(len(labels), rng))
    parts = []
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        images = drawn[typeface[part], labels[part], None].float()  # (n, 1, 64, 64)
        grid = F.affine_grid(theta[part], list(images.shape), align_corners=False)
        moved = F.avg_pool2d(F.grid_sample(images, grid, align_corners=False), DRAWN_SIZE // IMAGE_SIZE)
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
