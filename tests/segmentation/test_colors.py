import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt

from lightning_recall.segmentation.colors import PALETTE, WRONG, class_colors, depths, label_positions, paint

# how dichromats see linear RGB: Machado, Oliveira and Fernandes 2009, severity 1
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colors, vision):
    """CIELAB (n, 3) of sRGB colours (n, 3) in [0, 1], as a person sees them."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    xyz = seen @ TO_XYZ.T / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def smallest_distance(colors, vision):
    values = lab(colors, vision)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    return distances[~np.eye(len(colors), dtype=bool)].min()


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("count", "distance"), [(12, 21), (24, 14)])
def test_colours_differ_for_all_readers(vision, count, distance):
    colors = np.concatenate([class_colors(count) / 255, np.ones((1, 3))])  # with white, for ignored pixels
    assert smallest_distance(colors, vision) >= distance


@pytest.mark.parametrize("vision", VISION)
def test_wrong_pixels_differ_from_every_grey(vision):
    greys = np.linspace(0.2, 0.8, 61)[:, None].repeat(3, 1)
    wrong = np.array([[int(WRONG[start : start + 2], 16) / 255 for start in (1, 3, 5)]])
    assert np.linalg.norm(lab(greys, vision) - lab(wrong, vision), axis=1).min() > 40


def test_colours_repeat_after_the_palette():
    assert len(set(PALETTE)) == len(PALETTE) == 24
    colors = class_colors(30)
    assert (colors[24:] == colors[:6]).all()


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
