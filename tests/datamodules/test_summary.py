import re
import warnings
from functools import partial

import numpy as np
import pytest

from lightning_recall import ClassBalancedBatchSampler, RetrievalDataModule
from lightning_recall.data import ImagesInMemory
from lightning_recall.datamodules.summary import check_queries


def in_memory(labels):
    images = np.random.default_rng(labels).integers(256, size=(len(labels), 1, 4, 4), dtype=np.uint8)  # without copies
    return ImagesInMemory(images, labels)


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_of_one_image_are_rejected_before_training(split):
    data = RetrievalDataModule(val_classes=0)
    data.read = lambda: {"train": in_memory([0, 0, 1, 1]), split: in_memory([5, 6, 7])}
    name = {"val": "validation", "test": "test"}[split]
    with pytest.raises(ValueError, match=f"{name}: none of 3 queries has a relevant gallery image"):
        data.setup("fit")


def test_classes_of_one_image_can_be_embedded():
    data = RetrievalDataModule()
    data.read = lambda: {"test": in_memory([5, 6, 7])}
    with pytest.warns(UserWarning, match="test: 3 of 3 queries have no relevant gallery image and"):
        data.setup("predict")


def test_training_classes_of_one_image_are_left_to_the_sampler():
    data = RetrievalDataModule(val_classes=0)
    data.read = lambda: {"train": in_memory([0, 1, 2, 2])}
    data.setup("fit")


def test_classes_of_one_image_are_counted():
    with pytest.warns(UserWarning, match="validation: 2 of 6 queries have no relevant gallery image"):
        check_queries("validation", in_memory([5, 6, 7, 7, 8, 8]), required=True)


@pytest.mark.parametrize(
    ("is_query", "is_gallery", "without_match"),
    [
        ([1, 1, 1, 0], [1, 1, 0, 1], 0),
        ([1, 1, 1, 1], [1, 0, 1, 1], 1),  # the first of class 5 can retrieve only itself
        ([1, 0, 1, 1], [1, 0, 0, 1], 2),
        ([0, 0, 1, 0], [1, 1, 0, 1], 0),
    ],
)
def test_a_query_in_the_gallery_does_not_match_itself(is_query, is_gallery, without_match):
    data = in_memory([5, 5, 6, 6])
    data.is_query, data.is_gallery = np.array(is_query, bool), np.array(is_gallery, bool)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_queries("test", data, required=True)
    messages = [re.split(" has| have", str(warning.message))[0] for warning in warned]
    assert messages == ([f"test: {without_match} of {sum(is_query)} queries"] if without_match else [])


def test_queries_without_relevant_items_are_rejected():
    data = in_memory([5, 6, 7, 7])
    data.is_query, data.is_gallery = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
    with pytest.raises(ValueError, match="test: none of 2 queries has a relevant gallery image"):
        check_queries("test", data, required=True)


def test_one_class_says_nothing_about_the_model():
    with pytest.warns(UserWarning, match=r"validation: all images are of one class, so every score is 1: set aside"):
        check_queries("validation", in_memory([5, 5, 5]), required=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_queries("validation", in_memory([5, 5, 6, 6]), required=True)
        check_queries("test", in_memory([5, 5, 5]), required=True)  # the user chose it


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (18, "batch_size=18 is larger than the 16 training images: images repeat within a batch; choose at most 16"),
        (10, "batch_size=10 needs 5 classes of 2 images, but there are 4: a batch holds several packs of a class; for"),
        (8, None),
    ],
)
def test_batches_that_repeat_classes_or_images_are_announced(batch_size, message, caplog):
    repeat = partial(ClassBalancedBatchSampler, small_classes="repeat", few_classes="repeat")
    data = RetrievalDataModule(batch_size=batch_size, samples_per_class=2, val_classes=0, sampler=repeat)
    data.read = lambda: {"train": in_memory(np.repeat(np.arange(4), 4)), "test": in_memory([5, 5])}
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    count = sum(len(labels) for _, labels in batch)
    assert count == batch_size
    assert ("batch_size=" in caplog.text) == (message is not None)
    assert (message or "") in caplog.text
