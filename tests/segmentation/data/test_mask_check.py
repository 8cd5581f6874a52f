import numpy as np
import pytest
from PIL import Image, ImageOps
from segmentation_data import random_image, random_mask, save

from lightning_recall.segmentation.data import MaskFormat, SegmentationFiles
from lightning_recall.segmentation.data.mask_check import (
    describe_frequencies,
    error_message,
    image_size,
    percent,
    summarize_masks,
)

IDS = {0: 0, 1: 1, 2: 2, 9: 255}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(6):
        size = (30, 42) if index % 2 else (36, 48)
        save(random_image(rng, size), tmp_path / f"{index}.jpg")
        save(np.uint8(random_mask(rng, [0, 1, 9], size)), tmp_path / f"{index}.png")
    paths = [[tmp_path / f"{index}{suffix}" for index in range(6)] for suffix in (".jpg", ".png")]
    return SegmentationFiles(*paths, MaskFormat(IDS), ("a", "b", "c"))


def test_counts_equal_a_loop_over_the_files(data):
    summary = summarize_masks(data, "training")
    pixels = np.concatenate([np.asarray(Image.open(data.mask_path(index))).ravel() for index in range(6)])
    assert summary.pixel_counts.tolist() == [(pixels == 0).sum(), (pixels == 1).sum(), 0]
    assert summary.num_ignored == (pixels == 9).sum()
    assert summary.class_frequencies == pytest.approx(summary.pixel_counts / (pixels != 9).sum())
    assert summary.sizes == {(30, 42), (36, 48)}
    assert not summary.errors
    assert not summary.void_masks


def test_every_unusable_file_is_found_in_order(data, tmp_path):
    save(np.full((36, 48), 7, dtype=np.uint8), tmp_path / "0.png")
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:-300])
    (tmp_path / "2.png").write_bytes(b"")
    save(np.zeros((10, 10), dtype=np.uint8), tmp_path / "3.png")
    save(np.full((36, 48), 9, dtype=np.uint8), tmp_path / "4.png")
    summary = summarize_masks(data, "training")
    assert ["0.png has the id 7" in summary.errors[0], "1.jpg" in summary.errors[1]] == [True, True]
    assert "cannot read the mask" in summary.errors[2]
    assert "has 10 x 10 pixels" in summary.errors[3]
    assert len(summary.errors) == 4
    assert [path[-5:] for path in summary.void_masks] == ["4.png"]
    message = error_message("training", summary.errors, 6)
    assert message.startswith("training: 4 of 6 images cannot be used. The first: the mask ")
    assert not message.endswith("..")
    assert error_message("test", summary.errors[1:2], 6).startswith("test: cannot read the image ")


def test_complete_files_are_not_decoded(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png"):
        save(random_image(rng), tmp_path / f"a{suffix}")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    assert image_size(str(tmp_path / "a.jpg")) == image_size(str(tmp_path / "a.png")) == (36, 48)


def test_percentages():
    assert [percent(value) for value in (0.2951, 0.00532, 0.00004, 0.0, 1.0)] == [
        *("29.5 %", "0.53 %", "below 0.01 %", "0 %", "100.0 %")
    ]
    names = [f"c{index}" for index in range(30)]
    text = describe_frequencies(names, np.arange(30) / 435)
    assert text.startswith("c29 6.7 %, c28 6.4 %")
    assert "(10 classes more)" in text
    assert text.endswith("c1 0.23 %, c0 0 %")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_upright_images(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "0.jpg", exif=exif)
    with Image.open(tmp_path / "0.jpg") as file:
        width, height = ImageOps.exif_transpose(file).size
    assert image_size(str(tmp_path / "0.jpg")) == (height, width)


def test_images_without_a_white_level_are_found(data, tmp_path):
    Image.fromarray(np.zeros((36, 48), dtype=np.float32)).save(tmp_path / "0.jpg", format="TIFF")
    summary = summarize_masks(data, "training")
    assert len(summary.errors) == 1
    assert "cannot read the image" in summary.errors[0]
    assert "32-bit images have no defined white level" in summary.errors[0]
