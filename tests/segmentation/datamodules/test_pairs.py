import numpy as np
import pytest
from segmentation_data import save

from lightning_recall.segmentation.datamodules.pairs import pair_by_stem

GREY = np.zeros((4, 4), dtype=np.uint8)


def write(root, *names):
    for name in names:
        save(GREY, root / name)


def pairs(root):
    images, masks = pair_by_stem(root / "i", root / "m")
    short = [[path.removeprefix(f"{root}/") for path in paths] for paths in (images, masks)]
    return list(zip(*short, strict=True))


def test_files_are_paired_by_name_in_order(tmp_path):
    write(tmp_path, "i/b.jpg", "i/a.png", "i/sub/a.JPG", "m/a.png", "m/b.png", "m/sub/a.tif", "i/.hidden.png")
    (tmp_path / "i" / "Thumbs.db").write_text("")
    (tmp_path / "m" / "notes.txt").write_text("")
    assert pairs(tmp_path) == [("i/a.png", "m/a.png"), ("i/b.jpg", "m/b.png"), ("i/sub/a.JPG", "m/sub/a.tif")]


def test_masks_may_share_an_ending(tmp_path):
    write(tmp_path, "i/a.jpg", "i/b.jpg", "m/a_mask.png", "m/b_mask.png")
    assert pairs(tmp_path) == [("i/a.jpg", "m/a_mask.png"), ("i/b.jpg", "m/b_mask.png")]


def test_missing_counterparts(tmp_path):
    write(tmp_path, "i/a.jpg", "i/b.jpg", "i/c.jpg", "m/a.png")
    with pytest.raises(ValueError, match=r"m holds no mask for 2 images of 3, such as .*i/b.jpg: expected b.png"):
        pairs(tmp_path)
    write(tmp_path, "m/b.png", "m/c.png", "m/d.png")
    with pytest.raises(ValueError, match=r"i holds no image for 1 mask of 4, such as .*m/d.png: expected d.jpg"):
        pairs(tmp_path)


def test_two_files_of_one_name(tmp_path):
    write(tmp_path, "i/a.jpg", "i/a.png", "m/a.png")
    with pytest.raises(ValueError, match=r"i holds two images of one name, a.jpg and a.png: keep one"):
        pairs(tmp_path)


def test_empty_folders(tmp_path):
    write(tmp_path, "i/a.jpg")
    (tmp_path / "m").mkdir()
    with pytest.raises(ValueError, match=r"m holds no mask, such as a .png file\."):
        pairs(tmp_path)
    (tmp_path / "m" / "a.npy").write_text("")
    with pytest.raises(ValueError, match=r"holds no mask, such as a .png file; it holds 1 other file"):
        pairs(tmp_path)


def test_the_message_names_a_mask_without_image(tmp_path):
    write(tmp_path, "i/a.jpg", "i/b.jpg", "m/a.png", "m/b_mask.png")
    with pytest.raises(ValueError, match=r"expected b.png or another suffix, but found .*m/b_mask.png. Add or rename"):
        pairs(tmp_path)


def test_names_in_decomposed_unicode_are_the_same(tmp_path):
    write(tmp_path, "i/u\u0308.jpg", "m/\u00fc.png")
    assert pairs(tmp_path) == [("i/u\u0308.jpg", "m/\u00fc.png")]
