"""Colours of classes and domains that stay distinct for colour-blind readers."""

import numpy as np
from numpy.typing import NDArray

PALETTE = (
    *("#56b4e9", "#d55e00", "#f0e442", "#4d4d4d", "#aa00ff", "#000000", "#cc8866", "#662200"),
    *("#0066aa", "#aaff88", "#440044", "#4400aa", "#888888", "#8888ff", "#00ffaa", "#88cc44"),
    *("#ff0044", "#6644cc", "#ee8800", "#220066", "#ffccff", "#aa4488", "#aa2200", "#880088"),
)
"""colours of the first 24 classes

The first four are from Okabe and Ito. Each other is the one farthest from those before it, from white and from light
grey: the CIELAB distance, the smallest over normal vision, protanopia, deuteranopia and tritanopia (our choice).
"""


def class_colors(num_classes: int) -> NDArray[np.uint8]:
    """Colours (C, 3) of the classes in `PALETTE`, which repeats after 24 classes.

    >>> class_colors(2).tolist()
    [[86, 180, 233], [213, 94, 0]]
    """
    colors = [[int(color[start : start + 2], 16) for start in (1, 3, 5)] for color in PALETTE]
    return np.array([colors[number % len(colors)] for number in range(num_classes)], dtype=np.uint8)


def is_dark(color: NDArray[np.uint8]) -> bool:
    """Whether white text is easier to read on a colour (3,) than black text.

    >>> is_dark(np.array([0, 0, 170], np.uint8)), is_dark(np.array([255, 255, 0], np.uint8))
    (True, False)
    """
    return bool(color @ np.array([0.299, 0.587, 0.114]) < 128)
