import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_data import random_image, random_mask, save
from torchvision import tv_tensors

from lightning_recall.segmentation.data import MaskFormat, SegmentationFiles, SegmentationTransforms


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(4):
        save(random_image(rng), tmp_path / f"{index}.png")
        save(np.uint8(random_mask(rng, [0, 5, 255])), tmp_path / f"{index}_mask.png")
    return tmp_path


def files(folder, **settings):
    return SegmentationFiles(
        [folder / f"{index}.png" for index in range(4)],
        [folder / f"{index}_mask.png" for index in range(4)],
        MaskFormat({0: 0, 5: 1, 255: 255}),
        ("grass", "cow"),
        **settings,
    )


def test_items_are_the_files(folder):
    data = files(folder)
    image, mask = data[2]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype == torch.int64
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(folder / "2.png")))
    ids = np.asarray(Image.open(folder / "2_mask.png"))
    assert np.array_equal(mask.numpy(), np.where(ids == 5, 1, ids))
    assert data.image_path(2) == str(folder / "2.png")
    assert data.mask_path(2) == str(folder / "2_mask.png")


def test_selection_and_training(folder):
    data = files(folder, transforms=SegmentationTransforms(crop_size=16))
    part = data.select(np.array([3, 1])).for_training()
    assert [part.image_path(index)[-5:] for index in range(len(part))] == ["3.png", "1.png"]
    assert part[0][0].shape == (3, 16, 16)
    assert data[3][0].shape == (3, 36, 48)


def test_turned_photographs_fit_their_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:10] = 250  # the upper half is the right half once turned
    Image.fromarray(pixels).save(tmp_path / "0.jpg", exif=exif, quality=100)
    mask = np.zeros((30, 20), dtype=np.uint8)
    mask[:, 10:] = 1
    save(mask, tmp_path / "0.png")
    data = SegmentationFiles([tmp_path / "0.jpg"], [tmp_path / "0.png"], MaskFormat({0: 0, 1: 1}), ("dark", "bright"))
    image, read = data[0]
    assert torch.equal(image[0] > 128, read == 1)


def test_errors_name_the_files(folder):
    data = files(folder)
    save(np.zeros((48, 36), dtype=np.uint8), folder / "0_mask.png")
    with pytest.raises(ValueError, match=r"0_mask.png has 36 x 48 pixels .*0.png has 48 x 36: .* probably turned"):
        data[0]
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"Cannot read the image .*1.png: "):
        data[1]
    (folder / "2_mask.png").unlink()
    with pytest.raises(ValueError, match=r"annot read the mask .*2_mask.png: "):
        data[2]
    with pytest.raises(ValueError, match="one mask for each image, got 1 images and 0 masks"):
        SegmentationFiles(["a"], [], MaskFormat({0: 0}), ("a",))
