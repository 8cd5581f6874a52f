import numpy as np
import pytest

from lightning_recall.datamodules import ImageTableDataModule


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


def test_errors_of_unusable_tables(small_data, tmp_path):
    root = small_data("image_table")
    text = (root / "images.csv").read_text()
    with pytest.raises(ValueError, match="split must be one of train, val, test, query, gallery, got 'tester'"):
        table(root, text.replace(",test", ",tester"))
    with pytest.raises(ValueError, match="has no column 'label'"):
        table(root, text.replace("label", "class"))
    with pytest.raises(ValueError, match="1 class is in train and in test"):
        table(root, text.replace("photos/1_0.jpg,class 1,train", "photos/1_0.jpg,class 1,test"))
    twice = "./photos/../photos/1_0.jpg,class 101"
    with pytest.raises(ValueError, match=r"1_0\.jpg' has the labels 'class 1.*' and 'class 1.*': keep one of them"):
        table(root, f"{text}{twice},test\n")
    with pytest.raises(ValueError, match=r"1_0\.jpg' has the labels 'class 1.*' and 'class 1.*': keep one of them"):
        table(root, "\n".join(line.rpartition(",")[0] for line in f"{text}{twice},".splitlines()))
    with pytest.raises(ValueError, match=r"none\.csv does not exist"):
        ImageTableDataModule(str(tmp_path / "none.csv")).setup("fit")


def test_an_incomplete_split_column_is_not_replaced_by_a_random_split(small_data):
    root = small_data("image_table")
    lines = (root / "images.csv").read_text().splitlines()
    assert "split" in lines[0]
    (root / "broken.csv").write_text("\n".join([*lines[:-1], lines[-1].rsplit(",", 1)[0]]) + "\n")
    with pytest.raises(ValueError, match=r"line \d+: expected \d cells, got \d"):
        ImageTableDataModule(str(root / "broken.csv"), val_classes=1).setup("fit")


def test_splits_and_columns_in_any_case(small_data):
    root = small_data("image_table")
    text = (root / "images.csv").read_text()
    plain = table(root, text)
    other = (
        text.replace("path,label,split", "PATH, Label ,Split").replace(",train", ", Training").replace("test", "TEST")
    )
    for name in ("train_data", "val_data", "test_data"):
        expected, found = getattr(plain, name), getattr(table(root, other), name)
        assert found.paths.tolist() == expected.paths.tolist()
        assert found.labels.tolist() == expected.labels.tolist()
    lines = [line.replace(",train", ",dev") if "class 4" in line else line for line in text.splitlines()]
    assert set(table(root, "\n".join(lines)).val_data.labels.tolist()) == {7}  # after 1, 101 to 104, 2 and 3


def test_labels_do_not_depend_on_the_order_of_the_lines(small_data):
    root = small_data("image_table")
    header, *lines = (root / "images.csv").read_text().splitlines()

    def labels(lines):
        data = table(root, "\n".join([header, *lines]))
        parts = (data.train_data, data.val_data, data.test_data)
        return {part.path(i): part.labels[i] for part in parts for i in range(len(part))}

    expected = {
        f"{root}/{line.split(',')[0]}": n // 4 for n, line in enumerate(sorted(lines, key=lambda x: x.split(",")[1]))
    }
    assert labels(lines) == labels(lines[::-1]) == expected


def test_a_path_that_is_a_folder_or_has_backslashes(small_data):
    root = small_data("image_table")
    lines = (root / "images.csv").read_text().splitlines()
    with pytest.raises(ValueError, match=r"1 of 32 checked files cannot be found: .*/photos is a folder\. "):
        table(root, "\n".join([*lines[:-1], lines[-1].replace(lines[-1].split(",")[0], "photos")]))
    with pytest.raises(ValueError, match=r"photos\\104_3\.jpg\. Use / instead of \\ in paths"):
        table(root, "\n".join([*lines[:-1], lines[-1].replace("/", "\\")]))


def test_class_names_that_look_the_same_are_rejected(small_data):
    root = small_data("image_table")
    text = (root / "images.csv").read_text().replace("class 1,", "Caf\N{LATIN SMALL LETTER E WITH ACUTE},")
    with pytest.raises(ValueError, match=r"images\.csv: two class names look the same"):
        table(root, text.replace("class 2,", "Cafe\N{COMBINING ACUTE ACCENT},"))


def test_paths_may_start_with_a_tilde(small_data, monkeypatch):
    root = small_data("image_table")
    monkeypatch.setenv("HOME", str(root))
    text = (root / "images.csv").read_text().replace("photos/1_0", "~/photos/1_0")
    data = table(root, text)
    paths = [part.path(i) for part in (data.train_data, data.val_data) for i in range(len(part))]
    assert f"{root}/photos/1_0.jpg" in paths
    assert not any("~" in path for path in paths)
