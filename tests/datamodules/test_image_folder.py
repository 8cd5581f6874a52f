import os
import shutil

import pytest
from conftest import draw
from PIL import Image

from lightning_recall.datamodules import ImageFolderDataModule, ImageTableDataModule
from lightning_recall.datamodules.image_folder import list_images


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
    with pytest.raises(ValueError, match="1 class is in train and in test, such as 'class 2'"):
        set_up(root)


def test_folders_that_cannot_work(tmp_path):
    with pytest.raises(ValueError, match="holds no folder: each class needs one"):
        set_up(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"a holds no image, such as a \.jpg or \.png: remove the folder"):
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


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Val", "VALID"])
def test_other_names_of_the_validation_part(name, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3], **{name: [4]}, test=[101, 102])
    data = set_up(root)
    assert names(data.train_data) == {"class 1", "class 2", "class 3"}
    assert names(data.val_data) == {"class 4"}


def test_names_of_parts_in_any_case(small_data):
    root = small_data("image_folder")
    arrange(root, Training=[1, 2, 3], Valid=[4], Queries=[101], Gallery=[102])
    for image in (root / "Queries" / "class 101").iterdir():
        draw(root / "Gallery" / "class 101" / image.name, size=(9, 9))
    data = set_up(root)
    assert [names(part) for part in (data.train_data, data.val_data)] == [
        {"class 1", "class 2", "class 3"},
        {"class 4"},
    ]
    assert [data.test_data.is_query.sum(), data.test_data.is_gallery.sum()] == [4, 8]


@pytest.mark.parametrize("other", ["Extra", "val2", "class 1"])
def test_a_folder_beside_train_that_is_no_part_is_refused(other, small_data):
    root = small_data("image_folder")
    arrange(root, Train=[1, 2], Test=[101, 102])
    draw(root / other / "class 7" / "0.png")
    with pytest.raises(ValueError, match=rf"holds Train and '{other}', which is no part\. .* val, valid, .*gallery"):
        set_up(root)


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_a_query_needs_a_gallery(part, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3, 4], **{part: [101]})
    with pytest.raises(ValueError, match=f"has {part} and train: a test is `test`, or `query` and `gallery`"):
        set_up(root)


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_class_in_any_two_parts_is_refused(one, other, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2], val=[3], test=[101, 102])
    shutil.copytree(next((root / one).iterdir()), root / other / "class 5")
    next((root / one).iterdir()).rename(root / one / "class 5")
    with pytest.raises(ValueError, match=f"1 class is in {one} and in {other}, such as 'class 5'"):
        set_up(root)


def test_two_folders_of_one_part_are_refused(small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2], val=[3], valid=[4], test=[101, 102])
    with pytest.raises(ValueError, match="holds val and valid, which are the same part: keep one"):
        set_up(root)


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jp2", ".pgm", ".JPG", ".Webp", ".tiff", ".qoi", ".mpo"])
def test_every_format_that_pillow_decodes_is_read(suffix, small_data):
    root = small_data("image_folder")
    draw(root / "class 1" / f"more{suffix}", mode="L" if suffix == ".pgm" else "RGB")
    data = set_up(root, val_classes=0, test_classes=1, seed=1)
    part = data.train_data if "class 1" in names(data.train_data) else data.test_data
    (row,) = [row for row in range(len(part)) if part.path(row).endswith(suffix)]
    assert part.read(row).shape == (3, 30, 40)


def test_what_is_no_image_is_counted_once(small_data):
    root = small_data("image_folder")
    for name in ("class 1/notes.txt", "class 1/sub/a.pdf", "class 2/film.mpg", "class 3/noname", "class 3/figure.eps"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("words")
    draw(root / "beside.png")
    (root / "README.txt").write_text("words")  # what lies beside the classes is of interest if it is an image
    with pytest.warns(UserWarning, match="6 files are left out") as warned:
        set_up(root)
    (message,) = [str(warning.message) for warning in warned]
    assert f"The first is {root}/beside.png. Suffixes: .eps, .mpg, .pdf, .png, .txt, none." in message
    shutil.rmtree(root / "class 1")
    (root / "class 1").mkdir()
    (root / "class 1" / "a.heic5").write_text("words")
    with pytest.raises(ValueError, match=r"class 1 holds no image.* It holds 1 other file, such as .*a\.heic5"):
        set_up(root)


def test_linked_folders_of_a_class_are_searched_and_loops_end(small_data, tmp_path):
    root = small_data("image_folder")
    draw(tmp_path / "elsewhere" / "deep" / "9.png")
    (root / "class 1" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "class 1" / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "class 1" / "loop").symlink_to(root / "class 1", target_is_directory=True)
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    data = set_up(root, val_classes=0)
    parts = [data.train_data, data.test_data]
    found = [part.path(row) for part in parts for row in range(len(part)) if "class 1/" in part.path(row)]
    expected = ("0.png", "1.png", "2.png", "3.png", "again/deep/9.png")
    assert sorted(found) == [f"{root}/class 1/{name}" for name in expected]


def test_order_and_labels_do_not_depend_on_how_a_folder_is_listed(small_data, monkeypatch):
    root = small_data("image_folder")
    draw(root / "class 1" / "sub" / "a.png")
    draw(root / "class 1" / "sub-b" / "a.png")
    expected = [list_images(root, root, [])[0], set_up(root)]
    assert expected[0] == sorted(expected[0], key=lambda path: path.split("/"))
    scandir = os.scandir

    class Reversed:
        def __init__(self, folder="."):
            with scandir(folder) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.entries)

        def close(self):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder=".": sorted(listdir(folder), reverse=True))
    assert list_images(root, root, [])[0] == expected[0]
    again = set_up(root)
    assert again.train_data.labels.tolist() == expected[1].train_data.labels.tolist()
    assert again.train_data.paths.tolist() == expected[1].train_data.paths.tolist()


@pytest.mark.parametrize("prefix", ["~", "~/."])
def test_a_tilde_is_the_home_folder(prefix, small_data, monkeypatch):
    root = small_data("image_folder")
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(set_up(f"{prefix}/{root.name}", val_classes=0).train_data) == 24
    root = small_data("image_table")
    data = ImageTableDataModule(f"{prefix}/{root.name}/images.csv", val_classes=0)
    data.setup("fit")
    assert len(data.train_data) == 16


def test_a_root_that_is_a_file_and_a_table_that_is_a_folder(small_data):
    root = small_data("image_table")
    with pytest.raises(ValueError, match=r"images\.csv is a file: give the folder"):
        set_up(root / "images.csv")
    with pytest.raises(ValueError, match="image_table cannot be read: Is a directory"):
        ImageTableDataModule(str(root)).setup("fit")


@pytest.mark.skipif(os.name != "posix", reason="other file systems refuse such names")
def test_strange_names_of_files_and_classes(small_data):
    root = small_data("image_folder")
    for name in ("line\nbreak", "byte\udcff", "x" * 250):
        for i in range(4):
            draw(root / name / f"{i} {name[:5]}.png")
    data = set_up(root, val_classes=0)
    assert len(data.train_data) + len(data.test_data) == 44
    assert data.train_data[0][0].shape[0] == 3


def test_classes_whose_names_look_the_same(small_data):
    root = small_data("image_folder")
    draw(root / "Caf\N{LATIN SMALL LETTER E WITH ACUTE}" / "1.png")
    draw(root / "cafe\N{COMBINING ACUTE ACCENT}" / "1.png")
    lost = pytest.warns(UserWarning, match="1 of .* queries has no other image of its class to find")
    alike = pytest.warns(UserWarning, match="the classes '.*' and '.*' differ only in case")
    with lost, alike:
        set_up(root, val_classes=0, test_classes=8)
    (root / "cafe\N{COMBINING ACUTE ACCENT}").rename(root / "Cafe\N{COMBINING ACUTE ACCENT}")
    with pytest.raises(ValueError, match=r"names that look the same, coded as 'Cafe\\u0301' and 'Caf\\xe9'"):
        set_up(root)


def test_a_folder_that_may_not_be_read_is_an_error(small_data, monkeypatch):
    root = small_data("image_folder")
    (root / "class 1" / "sub").mkdir()
    scandir = os.scandir

    def refused(folder="."):
        if str(folder).endswith("sub"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match=r"Cannot read the folder .*class 1/sub: Permission denied"):
        set_up(root)


@pytest.mark.parametrize(
    "names",
    [
        ["train_set", "val_set", "test_set", "extra_set"],
        ["train2017", "val2017", "test2017", "unlabeled2017"],
        ["trn", "tst", "vld", "oth"],
        ["Training set", "Testing set", "other", "more"],
        ["bounding_box_train", "bounding_box_test", "query_images", "gt_bbox"],
        ["probe_a", "gallery_a", "b", "c"],
        ["dev-1", "1-TRAIN", "b", "c"],
    ],
)
def test_folders_that_look_like_parts_are_no_classes(names, small_data):
    root = small_data("image_folder")
    for c, name in enumerate(names, 1):
        (root / f"class {c}").rename(root / name)
    with pytest.raises(
        ValueError, match=r"which look like parts of a data set\. Name such folders train, val"
    ) as raised:
        set_up(root)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "names", [["test tube", "car"], ["bullet train", "trainer"], ["latest", "training shoe"], ["val 1", "val 2"]]
)
def test_class_names_that_hold_a_word_of_a_part_are_classes(names, small_data):
    root = small_data("image_folder")
    for c, name in enumerate(names, 1):
        (root / f"class {c}").rename(root / name)
    data = set_up(root, val_classes=0)
    assert len(data.train_data) + len(data.test_data) == 32


@pytest.mark.parametrize("place", ["", "train", "train/class 1"])
def test_a_link_back_to_a_parent_folder_is_named(place, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3, 4], test=[101, 102])
    link = root / "train" / "class 1" / "sub" / "up"
    link.parent.mkdir()
    link.symlink_to(root / place, target_is_directory=True)
    if place == "train/class 1":  # its images, once
        assert len(set_up(root, val_classes=0).train_data) == 16
        return
    with pytest.raises(ValueError, match=r"class 1/sub/up is a link that leads back to its parent folder .*: remove"):
        set_up(root)
    link.unlink()
    (root / "train" / "class 9").symlink_to(root / place, target_is_directory=True)
    with pytest.raises(ValueError, match=r"train/class 9 is a link that leads back to its parent folder"):
        set_up(root)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 50_000, "x/" * 5_000])
def test_a_root_of_a_long_name_is_not_there(name):
    for data in (ImageFolderDataModule(name), ImageTableDataModule(name)):
        with pytest.raises(ValueError, match=r"x is not there \(but \. is\)") as raised:
            data.setup("fit")
        assert len(str(raised.value)) < 500


def test_one_file_is_not_files(small_data):
    root = small_data("image_folder")
    (root / "class 1" / "notes.txt").write_text("words")
    with pytest.warns(
        UserWarning, match=r"image_folder: 1 file is left out: .* decodes\. It is .*/notes\.txt\. Suffix: \.txt\."
    ):
        set_up(root)
    (root / "class 1" / "notes.txt").unlink()
    for folder in sorted(root.iterdir())[1:]:
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match="image_folder holds 1 class: training needs 2"):
        ImageFolderDataModule(str(root)).setup("fit")
