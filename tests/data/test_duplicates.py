import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import class_and_number, draw
from PIL import Image
from pytorch_lightning import Trainer

from lightning_recall import RecallAtKLoss, RetrievalDataModule, RetrievalEvaluation, RetrievalModule
from lightning_recall.data import ImageFiles, ImagesInMemory, ImageTransforms, duplicates
from lightning_recall.data.duplicates import find_duplicates
from lightning_recall.datamodules import ImageFolderDataModule, ImageTableDataModule

IMAGES = ImageTransforms(size=8, resize=8)


def table(root, lines, **kwargs):
    (root / "images.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    data = ImageTableDataModule(str(root / "images.csv"), transforms=IMAGES, val_classes=1, **kwargs)
    data.setup("fit")
    return data


class Pixels(torch.nn.Module):
    def forward(self, images):
        return images.float().flatten(1)


def recall(data):
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", callbacks=[RetrievalEvaluation((1,))], **settings)
    (scores,) = trainer.test(RetrievalModule(Pixels(), RecallAtKLoss()), data, verbose=False)
    return scores["test/recall@1"]


@pytest.fixture
def four_tones(tmp_path):
    """Training images, and four test images of one colour, each nearest to one of the other class: Recall@1 is 0."""
    lines = []
    for c, i in class_and_number(range(4)):
        draw(tmp_path / "train" / f"{c}_{i}.png", size=(8, 8))
        lines.append(f"train/{c}_{i}.png,train {c},train")
    colours = {"a": (250, 5, 5), "b": (250, 9, 5), "c": (5, 250, 5), "d": (9, 250, 5)}
    for (name, colour), label in zip(colours.items(), "xyxy", strict=True):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
        lines.append(f"{name}.png,{label},test")
    return tmp_path, lines


def test_files_that_are_listed_twice_count_once(four_tones):
    root, lines = four_tones
    assert recall(table(root, lines)) == 0
    os.symlink(root / "c.png", root / "link.png")
    os.symlink(root, root / "folder")
    again = ["a.png,x,test", "./train/../b.png,y,test", "link.png,x,test", f"{root}/folder/d.png,y,test"]
    with pytest.warns(UserWarning, match="test: 4 of 8 images are dropped as duplicates: ") as warned:
        data = table(root, lines + again)
    assert sum("duplicates" in str(warning.message) for warning in warned) == 1
    assert [os.path.basename(data.test_data.path(index)) for index in range(4)] == ["a.png", "b.png", "c.png", "d.png"]
    assert recall(data) == 0
    assert recall(table(root, lines + again, check_duplicates=False)) == 1


def test_the_remaining_training_images_are_augmented(four_tones):
    root, lines = four_tones
    trained = os.path.basename(table(root, lines).train_data.path(0))
    again = next(line for line in lines if trained in line)
    with pytest.warns(UserWarning, match="training: 1 of 13 images is dropped as a duplicate of an earlier"):
        data = table(root, [*lines, again])
    assert data.train_data.training
    assert len(data.train_data) == 12


def test_an_image_that_is_query_and_gallery_is_one_item(four_tones):
    root, lines = four_tones
    lines = [line.replace(",test", ",query") for line in lines]
    gallery = [line.replace(",query", ",gallery") for line in lines if ",query" in line][1:]
    lost = pytest.warns(UserWarning, match=r"1 of 4 queries has no relevant gallery image .* such as .*c\.png")
    with lost, pytest.warns(UserWarning, match="test: 3 of 7 images are dropped"):
        test = table(root, lines + gallery).test_data
    assert test.is_query.tolist() == [True] * 4
    assert test.is_gallery.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "link.png,y,test",
            r"a\.png and .*link\.png are the same file, but with the labels 'x' and 'y': keep one of them",
        ),
        (
            "link.png,train 0,train",
            r"link\.png and .*a\.png are the same file, in training and in test: keep it in one",
        ),
        (
            "link.png,val,val",
            r"link\.png and .*a\.png are the same file, in validation and in test: keep it in one of them",
        ),
    ],
)
def test_one_file_with_two_labels_or_splits_is_rejected(line, message, four_tones):
    root, lines = four_tones
    (root / "link.png").symlink_to(root / "a.png")
    with pytest.raises(ValueError, match=message):
        table(root, [*lines, line])


def test_a_link_to_a_class_folder_under_another_name_is_rejected(small_data):
    root = small_data("image_folder")
    (root / "class 5").symlink_to(root / "class 1", target_is_directory=True)
    with pytest.raises(ValueError, match=r"class 1/0\.png and .*class 5/0\.png are the same file, (but with|in)"):
        ImageFolderDataModule(str(root)).setup("fit")


def files(root, **contents):
    """Data sets, given the bytes and the label of each file: training=[(b"...", 0)]."""
    parts = []
    for name, part in contents.items():
        for i, (data, _) in enumerate(part):
            (root / f"{name}_{i}.png").write_bytes(data)
        paths = [f"{name}_{i}.png" for i in range(len(part))]
        parts.append((name.replace("_", " "), ImageFiles(root, paths, [label for _, label in part])))
    return parts


def test_copies_are_counted_and_kept(tmp_path):
    parts = files(
        tmp_path,
        training=[(b"one", 0), (b"one", 0), (b"two", 1), (b"", 1), (b"", 2)],
        validation=[(b"six", 7), (b"ten", 7)],
        test_small=[(b"one", 3), (b"one", 3), (b"one", 4), (b"new", 4), (b"six", 5)],
        test_large=[(b"one", 3), (b"two", 3), (b"new", 4)],
    )
    found = find_duplicates(parts)
    assert found.error is None
    assert found.repeated == [[], [], [], []]
    sentences = [re.sub(f"{tmp_path}/", "", sentence) for sentence in found.warnings]
    inflated = "scores are inflated if the model has seen them."
    assert sentences == [
        "training: 2 of 5 images have an exact copy that has the same label, such as training_0.png and "
        "training_1.png.",
        "test small: 2 of 5 images have an exact copy that has the same label, such as test_small_0.png and "
        "test_small_1.png: copies rank first in retrieval.",
        "test small: 3 of 5 images have an exact copy that has another label, such as test_small_0.png and "
        "test_small_2.png: copies rank first in retrieval.",
        "test small: 3 of 5 images are exact copies of training images, such as test_small_0.png, a copy of "
        "training_0.png: " + inflated,
        "test large: 2 of 3 images are exact copies of training images, such as test_large_0.png, a copy of "
        "training_0.png: " + inflated,
        "test small: 1 of 5 images is an exact copy of a validation image, such as test_small_4.png, a copy of "
        "validation_0.png: " + inflated,
    ]


@pytest.mark.parametrize("position", [0, 5_000, 9_999])
def test_files_that_differ_in_one_byte_are_not_copies(position, tmp_path):
    one, other = bytearray(10_000), bytearray(10_000)
    other[position] = 1
    assert find_duplicates(files(tmp_path, test=[(one, 0), (other, 0), (bytes(10_001), 0)])).warnings == []
    (sentence,) = find_duplicates(files(tmp_path, test=[(one, 0), (other, 0), (one, 0)])).warnings
    assert "2 of 3 images" in sentence
    assert re.search(r"test_0\.png and .*test_2\.png", sentence)


def test_only_files_of_equal_size_are_read(tmp_path, monkeypatch):
    read = []
    digest = duplicates.digest
    monkeypatch.setattr(
        duplicates,
        "digest",
        lambda path, *rest: (read.append((os.path.basename(path), rest[-1])), digest(path, *rest))[1],
    )
    contents = [bytes(100), bytes([1]) * 100, bytes(99), bytes(10_000), bytes(10_000), bytes([1]) * 10_000]
    contents.append(bytes(5_000) + b"1" + bytes(4_999))  # its middle block differs from the others
    find_duplicates(files(tmp_path, test=[(data, 0) for data in contents]))
    assert read == [(f"test_{i}.png", False) for i in (0, 1, 3, 4, 5, 6)] + [(f"test_{i}.png", True) for i in (3, 4)]


def test_hard_links_are_copies_and_missing_files_are_ignored(tmp_path):
    parts = files(tmp_path, test=[(b"one", 0), (b"two", 0), (b"ten", 0)])
    (tmp_path / "test_1.png").unlink()
    (tmp_path / "test_2.png").unlink()
    os.link(tmp_path / "test_0.png", tmp_path / "test_2.png")
    found = find_duplicates(parts)
    assert found.repeated == [[]]
    assert ["2 of 3 images have an exact copy that has the same label" in s for s in found.warnings] == [True]


def test_different_crops_of_one_file_are_different_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    boxes = [[0, 0, 5, 5], [5, 0, 9, 9], [0, 0, 5, 5], [0, 0, 5, 5]]
    data = ImageFiles(tmp_path, ["a.png", "a.png", "b.png", "a.png"], [0, 0, 0, 0], boxes=boxes)
    found = find_duplicates([("test", data)])
    assert found.repeated == [[(0, 3)]]
    assert "2 of 4 images have an exact copy" in found.warnings[1]


def test_held_out_validation_classes_are_compared(small_data):
    root = small_data("image_folder")
    shutil.copy(root / "class 1" / "0.png", root / "class 2" / "copy.png")
    seen = []
    for seed in range(12):
        with pytest.warns(UserWarning, match="exact cop") as warned:
            ImageFolderDataModule(str(root), val_classes=1, seed=seed).setup("fit")
        seen += [str(warning.message).split(",")[0] for warning in warned]
    assert any("validation: 1 of" in sentence and "an exact copy of a training image" in sentence for sentence in seen)


class Rank1:
    is_global_zero = False

    def broadcast(self, found):
        assert found is None  # it has not searched
        return duplicates.Duplicates([[], [], []], [], "a.png is in training and in test: keep it in one of them.")


def test_other_processes_use_the_result_of_rank_zero(small_data):
    data = ImageFolderDataModule(str(small_data("image_folder")), val_classes=1)
    data.trainer = type("Trainer", (), {"strategy": Rank1()})()
    with pytest.raises(ValueError, match=r"a\.png is in training and in test"):
        data.setup("fit")


def memory(values, labels):
    """Images of one value each."""
    images = np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 3, 4, 4))
    return ImagesInMemory(images.copy(), labels)


def in_memory(check_duplicates=True):
    data = RetrievalDataModule(val_classes=0, check_duplicates=check_duplicates)
    data.read = lambda: {
        "train": memory([1, 1, 2, 3], [0, 0, 1, 1]),
        "test": {
            "small": memory([4, 5, 6, 7], [2, 2, 3, 3]),
            "large": memory([4, 4, 4, 2, 9], [2, 2, 3, 3, 3]),
        },
    }
    return data


def test_copies_in_memory_are_counted_and_kept():
    data = in_memory()
    with pytest.warns(UserWarning, match="exact cop") as warned:
        data.setup("fit")
    assert [str(warning.message) for warning in warned] == [
        "training: 2 of 4 images have an exact copy that has the same label, such as image 0 and image 1.",
        "test large: 2 of 5 images have an exact copy that has the same label, such as image 0 and image 1: copies "
        "rank first in retrieval.",
        "test large: 3 of 5 images have an exact copy that has another label, such as image 0 and image 2: copies "
        "rank first in retrieval.",
        "test large: 1 of 5 images is an exact copy of a training image, such as image 3, a copy of image 2: scores "
        "are inflated if the model has seen them.",
    ]
    assert [len(part) for part in (data.train_data, *data.test_data.values())] == [4, 4, 5]
    in_memory(check_duplicates=False).setup("fit")


def test_images_in_memory_of_another_shape_and_files_are_not_copies(tmp_path):
    (name, file), bytes_of_file = files(tmp_path, test=[(bytes(16), 0), (bytes(16), 1)])[0], np.zeros(16, np.uint8)
    square, line = (ImagesInMemory(bytes_of_file.reshape(1, 1, *shape), [0]) for shape in ((4, 4), (2, 8)))
    found = find_duplicates([("training", square), ("validation", line), (name, file)])
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("test: 2 of 2 images have an exact copy that has another label")


def test_messages_with_long_paths_are_short(tmp_path):
    deep = tmp_path
    for letter in "abcdefgh":
        deep = deep / (letter * 120)
    labels = "".join(f"{letter * 100}" for letter in "xyz")
    draw(deep / f"{'f' * 100}.png", size=(8, 8))
    os.symlink(deep / f"{'f' * 100}.png", deep / "link.png")
    data = ImageFiles(deep, [f"{'f' * 100}.png", "link.png"], [0, 1])
    data.class_names = (labels, labels + "2")
    error = find_duplicates([("test", data)]).error
    assert "link.png are the same file, but with the labels 'xxx" in error
    same = ImageFiles(deep, [f"{'f' * 100}.png", "link.png"], [0, 0])
    shutil.copy(deep / "link.png", deep / "copy.png")
    copies = ImageFiles(deep, ["copy.png", "copy.png"], [0, 0])
    found = find_duplicates([("test", same), ("training", copies)])
    assert len(found.warnings) == 3
    assert all(len(sentence) < 500 for sentence in [error, *found.warnings])
