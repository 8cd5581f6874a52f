import numpy as np
import pytest
import torch
from PIL import Image

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.pil_preprocessing import reduce

UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""EXIF orientation -> the Image.Transpose that stores an upright image so; the inverse of Pillow's table"""


def photograph(width, height):
    """Smooth structure with some noise, whose corners differ."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = np.stack([np.sin(20 * x + 3 * y), np.cos(13 * y), np.sin(15 * (x + y))], 2) * 50 + 90
    waves[: height // 4, : width // 4] += 80
    noise = np.random.default_rng(0).normal(0, 3, waves.shape)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def save(path, upright, orientation=1, mode="RGB"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(Image.Transpose(UNDO[orientation])) if orientation > 1 else upright
    stored.convert(mode).save(path, quality=95, exif=exif)


def item(path, gap, training=False, box=None, **settings):
    """The item, after the same random numbers as always."""
    torch.manual_seed(3)
    transforms = ImageTransforms(**{"size": 32, "min_scale": 0.5} | settings, reducing_gap=gap)
    boxes = None if box is None else [box]
    return ImageFiles("", [str(path)], [0], boxes=boxes, transforms=transforms, training=training)[0][0].int()


@pytest.fixture
def factors(monkeypatch):
    """The factors by which images were reduced."""
    found = []

    def spy(*args):
        found.append(reduce(*args))
        return found[-1]

    monkeypatch.setattr("lightning_recall.data.decoding.reduce", spy)
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["training", "evaluation", "longest side", "box", "box in training"])
def test_reduced_images_are_close_to_those_decoded_in_full(orientation, kind, factors, tmp_path):
    save(tmp_path / "0.jpg", photograph(480, 320), orientation)
    settings = {"training": "training" in kind, "box": (101.4, 30, 400, 290) if "box" in kind else None}
    if kind == "longest side":
        settings["longest_side"] = 50
    exact, reduced = (item(tmp_path / "0.jpg", gap, **settings) for gap in (None, 2.0))
    assert factors == [{"longest side": 4, "evaluation": 4}.get(kind, 2)]
    difference = (exact - reduced).abs()
    assert difference.float().mean() < 1  # one pixel to the side gives more than 4
    assert (exact - exact.roll(1, 2)).abs().float().mean() > 4
    assert difference.max() < 30


@pytest.mark.parametrize("size", [(479, 321), (481, 317), (333, 335)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sides_that_the_factor_does_not_divide(size, orientation, factors, tmp_path):
    save(tmp_path / "0.jpg", photograph(*size), orientation)
    exact, reduced = (item(tmp_path / "0.jpg", gap) for gap in (None, 2.0))
    assert factors == [4 if orientation == 1 else 1]
    assert (exact - reduced).abs().float().mean() < 1
    assert torch.equal(exact, reduced) == (orientation == 6)


@pytest.mark.parametrize(
    ("suffix", "mode", "settings"),
    [
        ("png", "RGB", {}),
        ("jpg", "L", {}),
        ("jpg", "CMYK", {}),
        ("jpg", "RGB", {"size": 100}),
        ("jpg", "RGB", {"box": (-9, 0, 400, 300)}),
        ("jpg", "RGB", {"box": (9, 9, 481, 300)}),
        ("jpg", "RGB", {"eval_transform": torch.nn.Identity()}),
    ],
)
def test_other_images_are_decoded_in_full(suffix, mode, settings, tmp_path):
    path = tmp_path / f"0.{suffix}"
    save(path, photograph(480, 320), mode=mode)
    assert torch.equal(item(path, None, **settings), item(path, 2.0, **settings))
    if not settings and mode == "RGB":
        save(tmp_path / "0.jpg", photograph(480, 320))
        assert not torch.equal(item(tmp_path / "0.jpg", None), item(tmp_path / "0.jpg", 2.0))


@pytest.mark.parametrize("gap", [1.0, 1.5, 2.0, 3.0])
def test_a_reduced_crop_keeps_the_gap(gap, tmp_path):
    save(tmp_path / "0.jpg", photograph(480, 320))
    found = set()
    for side in range(5, 330, 7):
        for crop in ((0, 0, 480, 320), (13, 50, 213, 300)):
            with Image.open(tmp_path / "0.jpg") as image:
                factor = reduce(image, crop, (side, side), gap)
                image.load()
            assert image.size == (480 // factor, 320 // factor)
            shorter = min(crop[2] - crop[0], crop[3] - crop[1])
            assert factor == 1 or shorter / factor >= gap * side
            assert factor == 8 or shorter / (2 * factor) < gap * side  # the next factor would be too much
            found.add(factor)
    assert found == {1, 2, 4, 8}


def test_grey_outputs_are_reduced_too(factors, tmp_path):
    save(tmp_path / "0.jpg", photograph(480, 320))
    exact, reduced = (item(tmp_path / "0.jpg", gap, mode="L") for gap in (None, 2.0))
    assert factors == [4]
    assert exact.shape == reduced.shape == (1, 32, 32)
    assert (exact - reduced).abs().float().mean() < 1
