import base64
import io

import pytest
from PIL import Image

from lightning_recall.comparison.thumbnails import SIDE, thumbnail


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    Image.new("RGB", (400, 200), (250, 10, 10)).save(root / "wide.jpg", quality=95)
    Image.new("RGB", (20, 10), (0, 0, 250)).save(tmp_path / "secret.png")
    (root / "text.jpg").write_text("no image")
    return root


def decode(address):
    assert address.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "CMYK"])
def test_images_of_any_mode_become_small_jpegs(folder, mode):
    Image.new(mode, (300, 500)).save(folder / "any.tif")
    image = decode(thumbnail(folder, "any.tif"))
    assert image.mode == "RGB"
    assert image.size == (round(SIDE * 0.6), SIDE)


def test_the_colours_and_the_orientation_are_kept(folder):
    assert decode(thumbnail(folder, "wide.jpg")).getpixel((70, 30)) == pytest.approx((250, 10, 10), abs=6)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (400, 200)).save(folder / "turned.jpg", exif=exif)
    assert decode(thumbnail(folder, "turned.jpg")).size == (SIDE // 2, SIDE)


def test_an_absolute_path_inside_the_folder_is_read(folder):
    assert thumbnail(folder, str(folder / "wide.jpg")) == thumbnail(folder, "wide.jpg") != ""


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/", "missing.jpg", "text.jpg", "", "\0.jpg"])
def test_other_files_are_not_read(folder, path):
    assert thumbnail(folder, path) == ""


def test_a_path_out_of_the_folder_is_not_read(folder):
    assert thumbnail(folder.parent, "secret.png") != ""
    assert thumbnail(folder, str(folder.parent / "secret.png")) == ""
