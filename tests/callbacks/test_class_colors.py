import numpy as np
import pytest
from color_vision import VISION, lab

from lightning_recall.callbacks.class_colors import PALETTE, class_colors


def smallest_distance(colors, vision):
    values = lab(colors, vision)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    return distances[~np.eye(len(colors), dtype=bool)].min()


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("count", "distance"), [(12, 21), (24, 14)])
def test_colours_differ_for_all_readers(vision, count, distance):
    colors = np.concatenate([class_colors(count) / 255, np.ones((1, 3))])  # with white, for ignored pixels
    assert smallest_distance(colors, vision) >= distance


def test_colours_repeat_after_the_palette():
    assert len(set(PALETTE)) == len(PALETTE) == 24
    colors = class_colors(30)
    assert (colors[24:] == colors[:6]).all()
