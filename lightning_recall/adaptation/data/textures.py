"""Colour textures, and the blending of MNIST-M: digits over patches of photos or textures."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

CELLS = (2, 4, 8, 16)
"""cells along an edge of the noise that textures are made of, from coarse to fine"""
BRIGHTNESS = (20, 140)  # of the mean colour, of 255: near 128, a stroke that inverts its texture is invisible
CHUNK = 1000  # textures drawn at a time, which bounds the memory


def draw_textures(
    count: int, size: int, rng: np.random.Generator, contrast: float = 0.8, brightness: float = 1.0
) -> NDArray[np.uint8]:
    """Draws textures (N, 3, size, size): smooth noise at four scales, a gradient and stripes, in random colours.

    Args:
        count: N.
        size: height and width in pixels, at least 1.
        rng: draws everything.
        contrast: factor of all differences from the mean colour of a texture, at least 0.
        brightness: factor of all values, from 0 to 1.

    >>> draw_textures(2, 32, np.random.default_rng(0)).shape
    (2, 3, 32, 32)
    """
    counts = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    parts = [draw_chunk(part, size, rng, contrast, brightness) for part in counts]
    return np.concatenate([np.zeros((0, 3, size, size), dtype=np.uint8), *parts])


def draw_chunk(
    count: int, size: int, rng: np.random.Generator, contrast: float, brightness: float
) -> NDArray[np.uint8]:
    """The same for a few textures at a time."""

    def uniform(low: float, high: float, channels: int) -> NDArray[np.float32]:
        return rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32)

    rows, columns = (np.mgrid[:size, :size] / size - 0.5).astype(np.float32)  # (H, W) each
    angle, phase, waves = uniform(0, 2 * np.pi, 1), uniform(0, 2 * np.pi, 1), uniform(1, 5, 1)
    along = np.cos(angle) * columns + np.sin(angle) * rows  # (N, 1, H, W)
    difference: NDArray[np.float32] = uniform(-90, 90, 3) * along  # the gradient, (N, 3, H, W)
    difference = difference + uniform(-35, 35, 3) * np.sin(2 * np.pi * waves * along + phase)
    for cells in CELLS:
        grey = rng.normal(0, 1, (count, 1, cells, cells)) * uniform(5, 30, 1)
        color = rng.normal(0, 1, (count, 3, cells, cells)) * uniform(0, 15, 1)
        noise = torch.from_numpy((grey + color).astype(np.float32))
        difference = difference + F.interpolate(noise, (size, size), mode="bilinear").numpy()
    image = uniform(*BRIGHTNESS, 1) + uniform(-40, 40, 3) + contrast * difference
    return np.asarray(brightness * image.clip(0, 255), dtype=np.uint8)


def blend(digits: NDArray[np.uint8], patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blends digits with patches as MNIST-M does: the absolute difference of each pixel and channel.

    The recipe is that of Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016: a
    stroke inverts the colours of the patch.

    Args:
        digits: (N, H, W) uint8, light on black.
        patches: (N, 3, H, W) uint8.

    Returns:
        (N, 3, H, W) uint8.

    >>> blend(np.full((1, 1, 1), 255, np.uint8), np.full((1, 3, 1, 1), 200, np.uint8)).ravel().tolist()
    [55, 55, 55]
    """
    difference = patches.astype(np.int16) - digits[:, None].astype(np.int16)
    return np.abs(difference).astype(np.uint8)
