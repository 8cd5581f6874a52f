import numpy as np
import pytest
import torch
from PIL import Image

from lightning_recall.adaptation.data import DomainArrays, DomainFiles, PhotoTransforms
from lightning_recall.adaptation.data.images import without_labels

TRANSFORMS = PhotoTransforms(size=8, resize=10, on_error="skip")


@pytest.fixture
def files(tmp_path):
    for number in range(3):
        Image.new("RGB", (12, 9), (10 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return DomainFiles(tmp_path, [f"{number}.png" for number in range(3)], [0, 1, 1], ["cup", "pen"], TRANSFORMS)


def test_files(files, tmp_path):
    image, label = files[2]
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.uint8
    assert (image[0] == 20).all()
    assert label == 1
    assert files.image_path(2) == str(tmp_path / "2.png")
    assert files.select([2]).class_names == ("cup", "pen")
    assert DomainFiles(tmp_path, ["0.png"], transforms=TRANSFORMS)[0][1] == -1


def test_an_unreadable_file_has_no_label_in_evaluation(files, tmp_path):
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="Cannot read the image"):
        image, label = files[1]
    assert label == -1
    assert not image.any()


def test_a_copy_without_labels(files):
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    for data in (DomainArrays(images, [1, 0], ["a", "b"]), files):
        copy = without_labels(data)
        assert {int(copy[index][1]) for index in range(len(copy))} == {-1}
        assert (copy[1][0] == data[1][0]).all()
        assert (data.labels >= 0).all()
        assert copy.class_names == data.class_names
