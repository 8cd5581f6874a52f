import pytest

from lightning_recall.adaptation.data.domain_files import find_domain


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(root, path, *lines):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("between", ["", "images/"])
def test_class_folders(tmp_path, between):
    touch(tmp_path, f"web/{between}pen/b.png", f"web/{between}cup/x/a.jpg", f"web/{between}.hidden/c.png")
    listing = find_domain(tmp_path, "web")["train"]
    assert listing.paths == [f"web/{between}cup/x/a.jpg", f"web/{between}pen/b.png"]
    assert listing.classes == ["cup", "pen"]
    assert listing.names == ("cup", "pen")


def test_split_folders(tmp_path):
    touch(tmp_path, *(f"web/{split}/{name}/1.png" for split in ("train", "testing") for name in ("cup", "pen")))
    splits = find_domain(tmp_path, "web")
    assert {split: listing.paths for split, listing in splits.items()} == {
        "train": ["web/train/cup/1.png", "web/train/pen/1.png"],
        "test": ["web/testing/cup/1.png", "web/testing/pen/1.png"],
    }


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/bus/1.png", "train/train/1.png")  # VisDA-2017
    assert find_domain(tmp_path, "train")["train"].names == ("bus", "train")


def test_a_folder_without_classes(tmp_path):
    touch(tmp_path, "web/b.png", "web/a.jpg", "web/notes.txt")
    (listing,) = find_domain(tmp_path, "web").values()
    assert listing.paths == ["web/a.jpg", "web/b.png"]
    assert listing.classes == [None, None]
    assert listing.names == ()


def test_image_list_in_the_folder_of_a_domain(tmp_path):
    touch(tmp_path, "validation/bus/1 a.png", "validation/truck/2.png", "validation/truck/unlisted.png")
    write(tmp_path, "validation/image_list.txt", "truck/2.png 11", "", "bus/1 a.png 2")
    listing = find_domain(tmp_path, "validation")["train"]
    assert listing.paths == ["validation/truck/2.png", "validation/bus/1 a.png"]
    assert listing.classes == ["truck", "bus"]
    assert listing.names == ("bus", "truck")  # in the order of the labels


def test_list_files(tmp_path):
    touch(tmp_path, "real/cup/1.jpg", "real/pen/2.jpg")
    write(tmp_path, "real_train.txt", "real/cup/1.jpg 1", "real/pen/2.jpg 0")
    write(tmp_path, "real_test.txt", "real/pen/2.jpg,0")
    splits = find_domain(tmp_path, "real")
    assert list(splits) == ["train", "test"]
    assert splits["train"].names == ("pen", "cup")
    assert splits["test"].paths == ["real/pen/2.jpg"]
    assert splits["test"].classes == ["pen"]
    write(tmp_path, "real.txt", "real/cup/1.jpg")
    (whole,) = find_domain(tmp_path, "real").values()
    assert whole.classes == [None]
    write(tmp_path, "image_list/real.txt", "real/cup/1.jpg 0")
    assert find_domain(tmp_path, "image_list/real.txt")["train"].classes == ["cup"]


def test_classes_without_a_folder_of_their_own_have_their_number(tmp_path):
    touch(tmp_path, "all/1.jpg", "all/2.jpg")
    write(tmp_path, "web.txt", "all/1.jpg 3", "all/2.jpg 5")
    assert find_domain(tmp_path, "web")["train"].names == ("3", "5")
    write(tmp_path, "web.txt", "a/1.jpg 3", "b/2.jpg 3")
    assert find_domain(tmp_path, "web")["train"].names == ("3",)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"web does not exist.*Layouts: root/DOMAIN/CLASS"):
        find_domain(tmp_path, "web")
    (tmp_path / "web").mkdir()
    with pytest.raises(ValueError, match="web holds no image"):
        find_domain(tmp_path, "web")
    touch(tmp_path, "web/cup/1.png", "web/pen/2.txt")
    with pytest.raises(ValueError, match="pen holds no image"):
        find_domain(tmp_path, "web")
    touch(tmp_path, "file.zip")
    with pytest.raises(ValueError, match=r"is neither a folder nor a .txt file"):
        find_domain(tmp_path, "file.zip")
    write(tmp_path, "web.txt", "cup/1.png 0", "cup/2.png")
    with pytest.raises(ValueError, match=r"web.txt: 'cup/2.png' has no label, but other images have one"):
        find_domain(tmp_path, "web")
    write(tmp_path, "web.txt", "")
    with pytest.raises(ValueError, match="lists no image"):
        find_domain(tmp_path, "web")
    write(tmp_path, "web.txt", "cup/1.png 0", "x" * 5000 + " 1")
    with pytest.raises(ValueError, match="line 2: expected a path and a label"):
        find_domain(tmp_path, "web")
    with pytest.raises(ValueError, match=r"missing.txt does not exist"):
        find_domain(tmp_path, "missing.txt")


def test_a_wrong_domain_lists_the_folders(tmp_path):
    touch(tmp_path, "amazon/cup/1.png", "webcam/cup/1.png", ".git/cup/1.png")
    with pytest.raises(ValueError, match=r"webcan does not exist, .* Folders there: 'amazon', 'webcam'\. Layouts"):
        find_domain(tmp_path, "webcan")


def test_folders_called_by_other_splits_are_classes(tmp_path):
    touch(tmp_path, *(f"web/{name}/1.png" for name in ("train", "query", "gallery")))
    assert find_domain(tmp_path, "web")["train"].names == ("gallery", "query", "train")


def test_two_folders_for_one_split_raise(tmp_path):
    touch(tmp_path, *(f"web/{split}/cup/1.png" for split in ("train", "val", "validation")))
    with pytest.raises(ValueError, match="several folders for one split, 'train', 'val', 'validation': join or remove"):
        find_domain(tmp_path, "web")
