import os
import shutil

import pytest
from conftest import draw
from PIL import Image

from lightning_recall.data import read_image
from lightning_recall.data.folders import list_images
from lightning_recall.datamodules import ImageFolderDataModule, ImageTableDataModule


def set_up(root, **kwargs):
    data = ImageFolderDataModule(str(root), **{"val_classes": 1, **kwargs})
    data.setup("fit")
    return data


def names(data):
    return {data.path(index).split("/")[-2] for index in range(len(data))}


def test_test_classes_are_drawn_at_random(small_data):
    root = small_data("image_folder")
    data = set_up(root, test_classes=0.25, seed=3)
    parts = [names(data.train_data), names(data.val_data), names(data.test_data)]
    assert list(map(len, parts)) == [5, 1, 2]
    assert len(set().union(*parts)) == 8
    again = set_up(root, test_classes=0.25, seed=3)
    assert [names(again.train_data), names(again.val_data), names(again.test_data)] == parts


def arrange(root, **splits):
    """Moves class folders into split folders, train=[1, 2], and removes the others."""
    for split, classes in splits.items():
        (root / split).mkdir()
        for c in classes:
            (root / f"class {c}").rename(root / split / f"class {c}")
    for folder in root.glob("class *"):
        shutil.rmtree(folder)


def test_split_folders_are_read(small_data):
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
        draw(image, size=(20, 30))  # otherwise they are copies
    with pytest.warns(UserWarning, match="4 of 8 queries have no relevant gallery image and are not scored, such as"):
        test = set_up(root).test_data
    assert (test.is_query.sum(), test.is_gallery.sum()) == (8, 8)
    shutil.copytree(root / "gallery", root / "test")
    with pytest.raises(ValueError, match="use either test, or query and gallery"):
        set_up(root)


@pytest.mark.parametrize("splits", [{"test": [101]}, {"val": [1]}, {"query": [1, 2, 3, 4], "gallery": [101, 102]}])
def test_split_folders_without_train_are_rejected(splits, small_data):
    root = small_data("image_folder")
    arrange(root, **splits)
    with pytest.raises(ValueError, match=f"has {' and '.join(splits)} but no train folder. Use either one folder per"):
        set_up(root)


def test_hidden_and_system_files_are_ignored(small_data):
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
        assert all("/." not in part.path(index).removeprefix(str(root)) for index in range(len(part)))


def test_a_class_in_train_and_test_is_rejected(small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3], test=[101, 102])
    shutil.copytree(root / "train" / "class 2", root / "test" / "class 2")
    with pytest.raises(ValueError, match="1 class is in train and in test, such as 'class 2'"):
        set_up(root)


def test_errors_of_unusable_folders(tmp_path):
    with pytest.raises(ValueError, match="holds no folder: each class needs a"):
        set_up(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"a holds no image, such as a \.jpg or \.png: remove the folder"):
        set_up(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match="holds 1 class: training needs 2"):
        set_up(tmp_path)


def test_the_error_for_small_classes_says_what_to_do(small_data):
    root = small_data("image_folder")
    for c in (1, 2, 3, 4, 101, 102):
        (root / f"class {c}" / "3.png").unlink()
    with pytest.raises(ValueError, match='small_classes="drop"'):
        set_up(root, test_classes=1, batch_size=8).train_dataloader()


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Val", "VALID"])
def test_other_names_of_the_validation_folder(name, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3], **{name: [4]}, test=[101, 102])
    data = set_up(root)
    assert names(data.train_data) == {"class 1", "class 2", "class 3"}
    assert names(data.val_data) == {"class 4"}


def test_split_names_in_any_case(small_data):
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
def test_an_unknown_folder_beside_train_is_rejected(other, small_data):
    root = small_data("image_folder")
    arrange(root, Train=[1, 2], Test=[101, 102])
    draw(root / other / "class 7" / "0.png")
    with pytest.raises(ValueError, match=rf"holds Train and '{other}', which is not a split\. .* val, valid"):
        set_up(root)


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_query_and_gallery_need_each_other(split, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3, 4], **{split: [101]})
    with pytest.raises(ValueError, match=f"has {split} and train: use either test, or query and gallery"):
        set_up(root)


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_class_in_any_two_splits_is_rejected(one, other, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2], val=[3], test=[101, 102])
    shutil.copytree(next((root / one).iterdir()), root / other / "class 5")
    next((root / one).iterdir()).rename(root / one / "class 5")
    with pytest.raises(ValueError, match=f"1 class is in {one} and in {other}, such as 'class 5'"):
        set_up(root)


def test_two_folders_of_one_split_are_rejected(small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2], val=[3], valid=[4], test=[101, 102])
    with pytest.raises(ValueError, match="holds val and valid, which are the same split: keep one"):
        set_up(root)


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jp2", ".pgm", ".JPG", ".Webp", ".tiff", ".qoi", ".mpo"])
def test_every_format_that_pillow_decodes_is_read(suffix, small_data):
    root = small_data("image_folder")
    draw(root / "class 1" / f"more{suffix}", mode="L" if suffix == ".pgm" else "RGB")
    data = set_up(root, val_classes=0, test_classes=1, seed=1)
    part = data.train_data if "class 1" in names(data.train_data) else data.test_data
    (index,) = [index for index in range(len(part)) if part.path(index).endswith(suffix)]
    assert read_image(part.path(index)).shape == (3, 30, 40)


def test_other_files_are_reported_once(small_data):
    root = small_data("image_folder")
    for name in ("class 1/notes.txt", "class 1/sub/a.pdf", "class 2/film.mpg", "class 3/noname", "class 3/figure.eps"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("words")
    draw(root / "beside.png")
    (root / "README.txt").write_text("words")  # files beside the class folders are reported only if they are images
    with pytest.warns(UserWarning, match="6 files are ignored") as warned:
        set_up(root)
    (message,) = [str(warning.message) for warning in warned if "ignored" in str(warning.message)]
    assert f"The first is {root}/beside.png. Suffixes: .eps, .mpg, .pdf, .png, .txt, none." in message
    shutil.rmtree(root / "class 1")
    (root / "class 1").mkdir()
    (root / "class 1" / "a.heic5").write_text("words")
    with pytest.raises(ValueError, match=r"class 1 holds no image.* It holds 1 other file, such as .*a\.heic5"):
        set_up(root)


def test_symbolic_links_are_followed_without_loops(small_data, tmp_path):
    root = small_data("image_folder")
    draw(tmp_path / "elsewhere" / "deep" / "9.png")
    (root / "class 1" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "class 1" / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "class 1" / "loop").symlink_to(root / "class 1", target_is_directory=True)
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    data = set_up(root, val_classes=0)
    parts = [data.train_data, data.test_data]
    found = [part.path(i) for part in parts for i in range(len(part)) if "class 1/" in part.path(i)]
    expected = ("0.png", "1.png", "2.png", "3.png", "again/deep/9.png")
    assert sorted(found) == [f"{root}/class 1/{name}" for name in expected]


def test_order_and_labels_do_not_depend_on_the_order_of_directory_entries(small_data, monkeypatch):
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


def test_a_root_that_is_a_file_and_a_table_that_is_a_folder_are_rejected(small_data):
    root = small_data("image_table")
    with pytest.raises(ValueError, match=r"images\.csv is a file: pass a folder"):
        set_up(root / "images.csv")
    with pytest.raises(ValueError, match="image_table cannot be read: Is a directory"):
        ImageTableDataModule(str(root)).setup("fit")


@pytest.mark.skipif(os.name != "posix", reason="other file systems do not allow such names")
def test_unusual_names_of_files_and_classes_are_read(small_data):
    root = small_data("image_folder")
    for name in ("line\nbreak", "byte\udcff", "x" * 250):
        for i in range(4):
            draw(root / name / f"{i} {name[:5]}.png")
    data = set_up(root, val_classes=0)
    assert len(data.train_data) + len(data.test_data) == 44
    assert data.train_data[0][0].shape[0] == 3


def test_class_names_that_look_the_same_warn_or_are_rejected(small_data):
    root = small_data("image_folder")
    draw(root / "Caf\N{LATIN SMALL LETTER E WITH ACUTE}" / "1.png")
    draw(root / "cafe\N{COMBINING ACUTE ACCENT}" / "1.png")
    lost = pytest.warns(UserWarning, match="1 of .* queries has no relevant gallery image and is not scored")
    alike = pytest.warns(UserWarning, match="the classes '.*' and '.*' differ only in case")
    with lost, alike:
        set_up(root, val_classes=0, test_classes=8)
    (root / "cafe\N{COMBINING ACUTE ACCENT}").rename(root / "Cafe\N{COMBINING ACUTE ACCENT}")
    with pytest.raises(ValueError, match=r"class names look the same, but are encoded as 'Cafe\\u0301' and 'Caf\\xe9'"):
        set_up(root)


def test_a_folder_without_read_permission_is_an_error(small_data, monkeypatch):
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
def test_folders_that_look_like_splits_are_rejected(names, small_data):
    root = small_data("image_folder")
    for c, name in enumerate(names, 1):
        (root / f"class {c}").rename(root / name)
    with pytest.raises(
        ValueError, match=r"which look like splits of a data set\. If they are, name the folders train, val"
    ) as raised:
        set_up(root)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "names", [["test tube", "car"], ["bullet train", "trainer"], ["latest", "training shoe"], ["val 1", "val 2"]]
)
def test_single_class_names_with_a_word_for_a_split_are_accepted(names, small_data):
    root = small_data("image_folder")
    for c, name in enumerate(names, 1):
        (root / f"class {c}").rename(root / name)
    data = set_up(root, val_classes=0)
    assert len(data.train_data) + len(data.test_data) == 32


@pytest.mark.parametrize("target", ["", "train", "train/class 1"])
def test_a_link_to_a_parent_folder_is_rejected(target, small_data):
    root = small_data("image_folder")
    arrange(root, train=[1, 2, 3, 4], test=[101, 102])
    link = root / "train" / "class 1" / "sub" / "up"
    link.parent.mkdir()
    link.symlink_to(root / target, target_is_directory=True)
    if target == "train/class 1":  # its images, once
        assert len(set_up(root, val_classes=0).train_data) == 16
        return
    with pytest.raises(ValueError, match=r"class 1/sub/up is a link to its parent folder .*: remove"):
        set_up(root)
    link.unlink()
    (root / "train" / "class 9").symlink_to(root / target, target_is_directory=True)
    with pytest.raises(ValueError, match=r"train/class 9 is a link to its parent folder"):
        set_up(root)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 50_000, "x/" * 5_000])
def test_a_root_with_a_long_name_does_not_exist(name):
    for kind in (ImageFolderDataModule, ImageTableDataModule):
        with pytest.raises(ValueError, match=r"x does not exist, but its parent folder .* does") as raised:
            kind(name)
        assert len(str(raised.value)) < 500


def test_messages_about_one_file_or_class_use_the_singular(small_data):
    root = small_data("image_folder")
    (root / "class 1" / "notes.txt").write_text("words")
    with pytest.warns(
        UserWarning, match=r"image_folder: 1 file is ignored: .* decodes\. It is .*/notes\.txt\. Suffix: \.txt\."
    ):
        set_up(root)
    (root / "class 1" / "notes.txt").unlink()
    for folder in sorted(root.iterdir())[1:]:
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match="image_folder holds 1 class: training needs 2"):
        ImageFolderDataModule(str(root)).setup("fit")


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("beside", [0, 2])
def test_a_root_one_level_too_high_is_recognised(splits, beside, small_data):
    root = small_data("image_folder")
    if splits:
        arrange(root, train=[1, 2, 3], test=[101, 102])
    above = root.parent / "above"
    above.mkdir()
    root.rename(above / "photos")
    for number in range(beside):
        draw(above / f"other {number}" / "0.png")
    inside, example = (2, "'test'") if splits else (8, "'class 1'")
    message = (
        f"above holds {1 + beside} folders?, and its folder 'photos' holds {inside}, such as {example}. If .*photos"
    )
    with pytest.raises(ValueError, match=message):
        set_up(above)
    set_up(above / "photos")


def test_few_classes_with_subfolders_are_not_taken_for_a_level(tmp_path):
    for name in ("a/x", "a", "b/y", "b"):
        draw(tmp_path / name / "0.png", size=(9 + len(name), 9))
    with pytest.raises(ValueError, match="holds 2 classes: training needs 2"):
        set_up(tmp_path)


def test_a_missing_root_is_found_before_the_model_is_built(tmp_path):
    with pytest.raises(ValueError, match=r"none does not exist, but its parent folder .* does\. Pass a folder"):
        ImageFolderDataModule(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"none\.csv does not exist, but its parent folder .* does\. Pass a CSV"):
        ImageTableDataModule(str(tmp_path / "none.csv"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: pass a folder that holds one folder of images per class"):
        ImageFolderDataModule(str(tmp_path / "file"))


def test_a_root_that_prepare_data_makes_may_be_missing_before(tmp_path):
    class Downloaded(ImageFolderDataModule):
        def prepare_data(self):
            for c in range(5):
                draw(self.root / str(c) / "0.png")
                draw(self.root / str(c) / "1.png", size=(9, 9))

    data = Downloaded(str(tmp_path / "new"), val_classes=1)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_data) == 6
