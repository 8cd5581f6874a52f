import numpy as np
import pytest
from PIL import Image

from lightning_recall.adaptation.data.mnist_m import make_mnist_m


@pytest.fixture
def photos(tmp_path):
    """Two photos in which each pixel tells its photo, column and row."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "readme.txt").touch()
    for number, file in enumerate((folder / "a.png", folder / "more" / "b.png")):
        rows, columns = np.mgrid[:40, :50].astype(np.uint8)
        Image.fromarray(np.stack([np.full_like(rows, 100 * number), columns, rows], 2)).save(file)
    return folder


def test_patches_are_random_crops_of_the_photos(photos):
    digits = np.zeros((30, 28, 28), dtype=np.uint8)  # black digits leave the patch as it is
    digits[:, 0, 0] = 255
    images = make_mnist_m(digits, photos, np.random.default_rng(0))
    assert images.shape == (30, 3, 28, 28)
    corners = images[:, :, 1, 1].astype(int)
    rows, columns = np.mgrid[:28, :28]
    for image, (photo, column, row) in zip(images.astype(int), corners, strict=True):
        assert image[0, 0, 0] == 255 - photo
        image[:, 0, 0] = photo, column - 1, row - 1
        assert (image[0] == photo).all()
        assert (image[1] == columns + column - 1).all()
        assert (image[2] == rows + row - 1).all()
    assert set(corners[:, 0]) == {0, 100}
    assert corners[:, 1].max() - 1 <= 50 - 28
    assert len(set(map(tuple, corners))) > 20
    assert (images == make_mnist_m(digits, photos, np.random.default_rng(0))).all()


def test_textures_without_photos():
    digits = np.zeros((4, 28, 28), dtype=np.uint8)
    images = make_mnist_m(digits, None, np.random.default_rng(0))
    assert images.std((2, 3)).min() > 1
    assert (images == make_mnist_m(digits, None, np.random.default_rng(0))).all()


def test_errors(tmp_path, photos):
    digits = np.zeros((4, 28, 28), dtype=np.uint8)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="photos is a folder of colour photos"):
        make_mnist_m(digits, tmp_path / "missing", rng)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        make_mnist_m(digits, tmp_path / "empty", rng)
    Image.new("RGB", (40, 20)).save(photos / "small.png")
    with pytest.raises(ValueError, match=r"small.png has 40 x 20 pixels, but a patch has 28 x 28"):
        make_mnist_m(digits, photos, rng)
    (photos / "small.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"Cannot read the image .*small.png"):
        make_mnist_m(digits, photos, rng)
