import io
import subprocess
import sys

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from lightning_recall.data import ImageTransforms
from lightning_recall.modules.preprocessing import SAVED, ModuleWithPreprocessing
from lightning_recall.pil_preprocessing import preprocess

SETTINGS = (
    {"size": 32},
    {"size": 24, "resize": 31, "mode": "L", "reducing_gap": None},
    {"longest_side": 50},
    {"size": 16, "resize": 16, "reducing_gap": 1.0},
    {"size": 90, "resize": 100},  # larger than some images
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images in all colour modes, depths and EXIF orientations, with odd sides, a fifth of them larger than 8 x 32."""
    root = tmp_path_factory.mktemp("photos") / "all"
    for number, mode in enumerate(("RGB", "L", "CMYK", "P", "RGBA", "1", "LA")):
        suffix = "jpg" if mode in ("RGB", "L", "CMYK") else "png"
        draw(root / f"{mode}.{suffix}", size=(61 + 25 * number, 83), mode=mode)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        for name, size in (("odd", (165, 61)), ("large", (640, 480))):
            draw(root / f"{name}_{orientation}.jpg", size=size, exif=exif)
    draw(root / "large.jpg", size=(1203, 801))
    Image.fromarray(np.arange(90 * 70, dtype=np.uint16).reshape(70, 90) * 10).save(root / "16 bits.png")
    return sorted(root.iterdir())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pixels_are_those_of_the_module(settings, photos):
    module = ModuleWithPreprocessing()
    module.image_transforms = ImageTransforms(**settings)
    resolved = module.image_transforms.for_model(None)
    plain = {name: getattr(resolved, name) for name in SAVED}
    assert len(photos) == 25
    for path in photos:
        expected = module.preprocess(path).numpy()
        found = preprocess(path, plain)
        assert found.shape == expected.shape, path.name
        assert found.dtype == np.uint8
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= 2, path.name
        assert difference.mean() < 0.2, path.name
        with path.open("rb") as file:
            np.testing.assert_array_equal(preprocess(io.BytesIO(file.read()), plain), found)


def encoded(size=(40, 30), image_format="PNG"):
    y, x = np.indices(size[::-1])
    file = io.BytesIO()
    Image.fromarray((x * 5 + y * 3).astype(np.uint8)).save(file, image_format)
    return file.getvalue()


def test_transparent_pixels_become_white():
    file = io.BytesIO()
    Image.new("RGBA", (20, 20), (10, 20, 30, 0)).save(file, "PNG")
    assert preprocess(file, PLAIN).min() == 255


def test_a_thin_image_keeps_a_pixel():
    for size, shape in (((300, 1), (3, 1, 50)), ((1, 300), (3, 50, 1))):
        assert preprocess(io.BytesIO(encoded(size)), {"longest_side": 50, "mode": "RGB"}).shape == shape


def test_an_unknown_orientation_is_upright():
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = 9
    Image.new("RGB", (80, 40)).save(file, "JPEG", exif=exif)
    assert preprocess(file, {"longest_side": 40, "mode": "RGB"}).shape == (3, 20, 40)


PLAIN = {"size": 16, "resize": 16, "mode": "RGB"}


def test_large_images_are_refused_before_they_are_decoded(monkeypatch):
    def load(_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ValueError, match=r"^The image has 40 x 30 pixels, more than 1199: send a smaller one\.$"):
        preprocess(io.BytesIO(encoded()), PLAIN, max_pixels=1199)
    monkeypatch.undo()
    assert preprocess(io.BytesIO(encoded()), PLAIN, max_pixels=1200).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encoded()[:60], encoded()[:-30], encoded(image_format="JPEG")[:400]], ids=len
)
def test_broken_files(content):
    with pytest.raises(ValueError, match=r"^This is not an image file that Pillow can decode: [^<]*[^.]\.$"):
        preprocess(io.BytesIO(content), PLAIN)


def test_files_that_are_no_image_input(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="32-bit images have no defined white level"):
        preprocess(tmp_path / "float.tiff", PLAIN)
    with pytest.raises(FileNotFoundError):
        preprocess(tmp_path / "missing.jpg", PLAIN)


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match="could be decompression bomb"):
        preprocess(io.BytesIO(encoded()), PLAIN)


def test_it_needs_no_torch():
    code = "import sys, lightning_recall.pil_preprocessing; assert not {'torch', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
