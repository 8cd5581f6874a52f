import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import draw
from lightning_recall.datamodules import ImageFolderDataModule, ImageTableDataModule


def set_up(root, **kwargs):
    data = ImageFolderDataModule(str(root), **{"val_classes": 1, **kwargs})
    data.setup("fit")
    return data


def names(data):
    return {data.path(row).split("/")[-2] for row in range(len(data))}


def test_classes_are_drawn_for_the_test(small_data):
    root = small_data("image_folder")
    data = set_up(root, test_classes=0.25, seed=3)
    parts = [names(data.train_data), names(data.val_data), names(data.test_data)]
    assert list(map(len, parts)) == [5, 1, 2]
    assert len(set().union(*parts)) == 8
    again = set_up(root, test_classes=0.25, seed=3)
    assert [names(again.train_data), names(again.val_data), names(again.test_data)] == parts


def arrange(root, **parts):
    """Moves class folders into parts, train=[1, 2], and removes the others."""
    for part, classes in parts.items():
        (root / part).mkdir()
        for c in classes:
            (root / f"class {c}").rename(root / part / f"class {c}")
    for folder in root.glob("class *"):
        shutil.rmtree(folder)


def test_parts_that_there_are_folders_of(small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3], val=[4], test=[101, 102, 103, 104])
    data = set_up(root)
    assert names(data.train_data) == {"class 1", "class 2", "class 3"}
    assert names(data.val_data) == {"class 4"}
    assert len(data.test_data) == 16


def test_queries_and_gallery(small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3, 4], query=[101, 102], gallery=[103])
    shutil.copytree(root / "query" / "class 101", root / "gallery" / "class 101")
    for image in (root / "gallery" / "class 101").iterdir():
        draw(image, size=(20, 30))  # else they were copies
    with pytest.warns(UserWarning, match="4 of 8 queries have no other image of their class to find, such as"):
        test = set_up(root).test_data
    assert (test.is_query.sum(), test.is_gallery.sum()) == (8, 8)
    shutil.copytree(root / "gallery", root / "test")
    with pytest.raises(ValueError, match="a test is `test`, or `query` and `gallery`"):
        set_up(root)


@pytest.mark.parametrize("parts", [{"test": [101]}, {"val": [1]}, {"query": [1, 2, 3, 4], "gallery": [101, 102]}])
def test_parts_without_train_are_no_classes(parts, small_data):
    root = small_data("image_folder")
    arrange(root, **parts)
    with pytest.raises(ValueError, match=f"holds {' and '.join(parts)}, but no train. It needs a folder for each"):
        set_up(root)


def test_what_is_hidden_is_no_image(small_data):
    root = small_data("image_folder")
    image = root / "class 1" / "0.png"
    inside = (f"class 1/{name}" for name in (".thumbnails", "__MACOSX", "sub/.git", "more.png"))
    for name in (".cache", "__MACOSX", *inside):
        draw(root / name / "0.png", size=(9, 9))
    for name in ("._0.png", "sub/._1.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        shutil.copy(image, root / "class 1" / name)
    data = set_up(root, test_classes=4)
    assert len(data.train_data) + len(data.val_data) + len(data.test_data) == 33  # a folder may be called more.png
    for part in (data.train_data, data.val_data, data.test_data):
        assert all("/." not in part.path(row).removeprefix(str(root)) for row in range(len(part)))


def test_one_class_in_two_parts_is_refused(small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3], test=[101, 102])
    shutil.copytree(root / "train" / "class 2", root / "test" / "class 2")
    with pytest.raises(ValueError, match="1 classes are in train and in test, such as 'class 2'"):
        set_up(root)


def test_folders_that_cannot_work(tmp_path):
    with pytest.raises(ValueError, match="holds no folder: each class needs one"):
        set_up(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a holds no image, such as a .jpg or .png: remove the folder"):
        set_up(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match="holds 1 class: training needs 2"):
        set_up(tmp_path)


def test_classes_without_enough_images_say_what_to_do(small_data):
    root = small_data("image_folder")
    for c in (1, 2, 3, 4, 101, 102):
        (root / f"class {c}" / "3.png").unlink()
    with pytest.raises(ValueError, match='small_classes="drop"'):
        set_up(root, test_classes=1, batch_size=8).train_dataloader()


def table(root, text):
    (root / "images.csv").write_text(text)
    data = ImageTableDataModule(str(root / "images.csv"), val_classes=1)
    data.setup("fit")
    return data


def test_a_table_with_splits_and_one_without(small_data):
    root = small_data("image_table")
    text = (root / "images.csv").read_text()
    data = table(root, text)
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [12, 4, 16]
    data = table(root, "\r\n".join(line.rpartition(",")[0] for line in text.splitlines()))
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [20, 4, 8]
    test = [line.replace(",test", ",gallery" if "_3" in line else ",query") for line in text.splitlines()]
    data = table(root, "\n".join(test))
    assert (data.test_data.is_query.sum(), data.test_data.is_gallery.sum()) == (12, 4)
    assert np.array_equal(data.test_data.is_query, ~data.test_data.is_gallery)


def test_tables_that_cannot_work(small_data, tmp_path):
    root = small_data("image_table")
    text = (root / "images.csv").read_text()
    with pytest.raises(ValueError, match="split must be one of train, val, test, query, gallery, got 'tester'"):
        table(root, text.replace(",test", ",tester"))
    with pytest.raises(ValueError, match="has no column 'label'"):
        table(root, text.replace("label", "class"))
    with pytest.raises(ValueError, match="1 classes are in train and in test"):
        table(root, text.replace("photos/1_0.jpg,class 1,train", "photos/1_0.jpg,class 1,test"))
    twice = "./photos/../photos/1_0.jpg,class 101"
    with pytest.raises(ValueError, match=r"1_0\.jpg' has the labels 'class 1.*' and 'class 1.*': keep one of them"):
        table(root, f"{text}{twice},test\n")
    with pytest.raises(ValueError, match=r"1_0\.jpg' has the labels 'class 1.*' and 'class 1.*': keep one of them"):
        table(root, "\n".join(line.rpartition(",")[0] for line in f"{text}{twice},".splitlines()))
    with pytest.raises(ValueError, match=r"none\.csv is not there"):
        ImageTableDataModule(str(tmp_path / "none.csv")).setup("fit")


def test_a_broken_split_column_never_means_a_random_split(small_data):
    root = small_data("image_table")
    lines = (root / "images.csv").read_text().splitlines()
    assert "split" in lines[0]
    (root / "broken.csv").write_text("\n".join([*lines[:-1], lines[-1].rsplit(",", 1)[0]]) + "\n")
    with pytest.raises(ValueError, match=r"line \d+: \d cells where \d are needed"):
        ImageTableDataModule(str(root / "broken.csv"), val_classes=1).setup("fit")
