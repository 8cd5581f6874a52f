import numpy as np
import pytest
from color_vision import VISION, lab
from scipy.ndimage import distance_transform_cdt

from lightning_recall.callbacks.class_colors import class_colors
from lightning_recall.segmentation.colors import WRONG, depths, label_positions, paint


@pytest.mark.parametrize("vision", VISION)
def test_wrong_pixels_differ_from_every_grey(vision):
    greys = np.linspace(0.2, 0.8, 61)[:, None].repeat(3, 1)
    wrong = np.array([[int(WRONG[start : start + 2], 16) / 255 for start in (1, 3, 5)]])
    assert np.linalg.norm(lab(greys, vision) - lab(wrong, vision), axis=1).min() > 40


def test_values_that_are_no_class_are_white():
    mask = np.array([[-1, 0, 1], [2, 255, 1]])
    colors = class_colors(2)
    expected = [[[255] * 3, colors[0], colors[1]], [[255] * 3, [255] * 3, colors[1]]]
    assert (paint(mask, colors) == expected).all()


def test_depths_are_city_block_distances():
    region = np.random.default_rng(0).random((12, 15)) < 0.85
    expected = distance_transform_cdt(np.pad(region, 1), metric="taxicab")[1:-1, 1:-1]
    assert (depths(region) == expected).all()
    assert expected.max() > 1


def test_large_regions_get_a_number_inside():
    mask = np.full((40, 60), -1)
    mask[2:22, 3:23] = 1
    mask[2:22, 40:60] = 1  # a second region, far from the first
    mask[30:33, 5:50] = 0  # too narrow
    positions = list(label_positions(mask, 2, radius=4))
    assert [number for number, _, _ in positions] == [1, 1]
    assert all(mask[y - 3 : y + 4, x].tolist() == [1] * 7 for _, x, y in positions)
    assert {x < 30 for _, x, _ in positions} == {True, False}
    assert {number for number, _, _ in label_positions(mask, 2, radius=1)} == {0, 1}
