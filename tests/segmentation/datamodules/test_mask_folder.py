import numpy as np
import pytest
from jsonargparse import ArgumentParser
from segmentation_data import FOLDER_CLASSES, draw_mask_folder, random_mask, save

from lightning_recall.segmentation.datamodules import MaskFolderDataModule


@pytest.mark.parametrize("kind", ["ids", "ids16", "palette", "colors"])
def test_each_kind_of_mask_has_the_same_classes(tmp_path, kind):
    data = MaskFolderDataModule(str(draw_mask_folder(tmp_path, kind)), val_fraction=0.2, test_fraction=0.3)
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [5, 2, 3]
    assert data.class_names == ("background", "leaf", "spot")
    reference = MaskFolderDataModule(str(draw_mask_folder(tmp_path / "ids")), val_fraction=0.2, test_fraction=0.3)
    reference.setup()
    assert [mask.tolist() for _, mask in data.val_data] == [mask.tolist() for _, mask in reference.val_data]
    if kind == "colors":
        assert data.colors.tolist() == [list(color) for color in FOLDER_CLASSES.values()]
    else:
        assert data.colors is None


@pytest.mark.parametrize("layout", ["inner", "outer"])
def test_split_folders(tmp_path, layout):
    draw_mask_folder(tmp_path, layout=layout, count=4)
    data = MaskFolderDataModule(str(tmp_path))
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [4, 4, 4]
    for split, part in (("train", data.train_data), ("val", data.val_data), ("test", data.test_data)):
        assert all(f"/{split}/" in part.image_path(index) for index in range(4))
        assert all(f"/{split}/" in part.mask_path(index) for index in range(4))


def test_without_a_validation_folder_training_images_are_held_out(tmp_path):
    draw_mask_folder(tmp_path, layout="outer", count=10)
    (tmp_path / "val").rename(tmp_path / ".val")
    data = MaskFolderDataModule(str(tmp_path), val_fraction=0.2)
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [8, 2, 10]
    none = MaskFolderDataModule(str(tmp_path), val_fraction=0)
    none.setup()
    assert len(none.train_data) == 10
    assert none.val_data is None


@pytest.mark.parametrize("layout", ["inner", "outer"])
def test_images_without_masks_are_for_predict(tmp_path, layout):
    draw_mask_folder(tmp_path, layout=layout, count=3)
    masks = tmp_path / ("masks/test" if layout == "inner" else "test/masks")
    masks.rename(tmp_path / ".hidden")
    data = MaskFolderDataModule(str(tmp_path))
    for stage in ("fit", "predict"):
        data.setup(stage)
    (batch,) = data.predict_dataloader()
    assert batch[0].shape == (3, 3, 36, 48)
    assert (batch[1] == 255).all()
    with pytest.raises(ValueError, match="The test images have no masks: use them only for predict"):
        data.setup("test")


def test_names_of_folders_may_vary(tmp_path):
    draw_mask_folder(tmp_path, layout="inner")
    (tmp_path / "images").rename(tmp_path / "Images")
    (tmp_path / "masks").rename(tmp_path / "labels")
    for name in ("Images", "labels"):
        (tmp_path / name / "val").rename(tmp_path / name / "Validation")
    data = MaskFolderDataModule(str(tmp_path))
    data.setup()
    assert len(data.val_data) == 10


def test_classes_from_settings(tmp_path):
    draw_mask_folder(tmp_path)
    data = MaskFolderDataModule(str(tmp_path), classes={"spot": 2, "leaf": 1, "rest": 0}, ignored=("rest",))
    data.setup()
    whole = MaskFolderDataModule(str(tmp_path))
    whole.setup()
    expected = np.array([255, 1, 0])[whole.val_data[0][1].numpy()]
    assert np.array_equal(data.val_data[0][1], expected)
    assert data.class_names == ("spot", "leaf")


@pytest.mark.parametrize(
    ("arguments", "names", "code"),
    [
        (["--data.classes=[a, b]"], ("a", "b"), 1),
        (["--data.classes={a: 5, b: 7}", "--data.ignored=[0]"], ("a", "b"), 7),
        (["--data.classes={a: [0, 0, 1], b: [0, 1, 0]}", "--data.ignored=[[9, 9, 9]]"], ("a", "b"), 256),
        (["--data.classes=classes.txt"], ("background", "leaf", "spot"), 2),
    ],
)
def test_classes_from_the_command_line(tmp_path, arguments, names, code):
    draw_mask_folder(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MaskFolderDataModule, "data")
    folder = [f"--data={MaskFolderDataModule.__module__}.MaskFolderDataModule", f"--data.root={tmp_path}"]
    data = parser.instantiate(parser.parse_args([*folder, *arguments])).data
    assert data.class_names == names
    assert data.classes.mask_format.class_of[code] == len(names) - 1


def test_unknown_values_are_one_error_before_training(tmp_path):
    draw_mask_folder(tmp_path)
    for index in (2, 5):
        save(np.full((36, 48), 40 + index, dtype=np.uint8), tmp_path / "masks" / f"plant {index:03d}.png")
    with pytest.raises(ValueError, match=r"^training: 2 of 10 images cannot be used. The first: the mask ") as error:
        MaskFolderDataModule(str(tmp_path), val_fraction=0).setup()
    assert "plant 002.png has the id 42 in 1,728 pixels. Known are 0 'background', 1 'leaf', 2 'spot'" in str(
        error.value
    )


def test_masks_as_jpeg(tmp_path):
    draw_mask_folder(tmp_path, count=4)
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
        save(np.uint8(random_mask(np.random.default_rng(0), [0, 1, 2])), path.with_suffix(".jpg"))
    with pytest.raises(
        ValueError, match=r"plant 000.jpg is a JPEG file, which changes the values of pixels: save masks as"
    ):
        MaskFolderDataModule(str(tmp_path), val_fraction=0).setup()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ((), r"holds no folders: no training images. Layouts: images/ and masks/; "),
        (("images",), r"has a folder of images, but none of masks"),
        (("masks",), r"has a folder of masks, but none of images"),
        (("photos", "truth"), r"holds 'photos', 'truth': no training images"),
        (("images/val", "masks/val"), "no training images"),
        (("images/train", "masks/train", "images/val"), "lacks the images or the masks of val"),
        (("images/train", "images/extra", "masks/train"), r"holds train and 'extra', which is not a split: train, "),
        (("images/train", "images/training", "masks/train"), "holds train and training, the same split: keep one"),
        (("train/images", "train/masks", "test/masks"), "lacks the images or the masks of test"),
        (("images", "masks"), "images holds no image, such as a .png file"),
    ],
)
def test_wrong_layouts(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        MaskFolderDataModule(str(tmp_path), classes=["a", "b"]).check_data()


def test_invalid_settings(tmp_path):
    with pytest.raises(ValueError, match=r"none does not exist.*Pass a folder with one of these layouts"):
        MaskFolderDataModule(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"together below 1, got 0.5 and 0.5"):
        MaskFolderDataModule(str(tmp_path), ["a"], val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match=r"has no classes.csv or"):
        MaskFolderDataModule(str(tmp_path))


def test_masks_of_0_and_255(tmp_path):
    draw_mask_folder(tmp_path, count=4)
    mask = random_mask(np.random.default_rng(0), [0, 255]).astype(np.uint8)
    for path in (tmp_path / "masks").iterdir():
        save(mask, path)
    binary = {"background": 0, "foreground": 255}
    for classes in (["background", "foreground"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"hold only the class .* and 255, which is ignored .*foreground: 255}'"):
            MaskFolderDataModule(str(tmp_path), classes).setup()
    data = MaskFolderDataModule(str(tmp_path), binary)
    data.setup()
    assert data.val_data[0][1].tolist() == (mask > 0).astype(int).tolist()
    with pytest.warns(UserWarning, match="all pixels are of one class"):
        MaskFolderDataModule(str(tmp_path), ["background", "foreground"], ignored=(255,)).setup()


@pytest.mark.parametrize("ending", ["_labels", "annot", "_Masks"])
def test_folders_of_masks_beside_the_splits(tmp_path, ending):
    draw_mask_folder(tmp_path, layout="outer", count=3)
    for split in ("train", "val", "test"):
        (tmp_path / split / "masks").rename(tmp_path / f"{split}{ending}")
        (tmp_path / split / "images").rename(tmp_path / "images")
        (tmp_path / split).rmdir()
        (tmp_path / "images").rename(tmp_path / split)
    data = MaskFolderDataModule(str(tmp_path))
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [3, 3, 3]
    assert f"/train{ending}/" in data.train_data.mask_path(0)
    (tmp_path / f"val{ending}").rename(tmp_path / "other")
    with pytest.raises(ValueError, match="lacks the images or the masks of val"):
        MaskFolderDataModule(str(tmp_path)).setup()


@pytest.mark.parametrize("has_masks", [False, True])
def test_a_folder_with_only_test_images(tmp_path, has_masks):
    draw_mask_folder(tmp_path, layout="outer", count=3)
    for name in ("train", "val", *(() if has_masks else ("test/masks",))):
        (tmp_path / name).rename(tmp_path / ("." + name.replace("/", "")))
    data = MaskFolderDataModule(str(tmp_path))
    data.setup("predict")
    assert len(next(iter(data.predict_dataloader()))[0]) == 3
    with pytest.raises(ValueError, match="has no training images: use it only for validate, test and predict"):
        data.train_dataloader()
    if has_masks:
        data.setup("test")
        assert next(iter(data.test_dataloader()))[1].max() < 3
