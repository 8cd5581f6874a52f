from collections import UserDict

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_recall.callbacks.batches import check_loaders, inputs_of_batch, labels_of_batch, loader_at, named_loaders

LABELS = torch.tensor([3, 4])


def test_labels_are_those_of_the_step_else_of_the_batch():
    assert labels_of_batch({"embeddings": 1, "labels": LABELS}, object()) is LABELS
    assert labels_of_batch({"embeddings": 1}, UserDict(text="a", labels=LABELS)) is LABELS
    assert labels_of_batch(None, ({"text": "a"}, LABELS)) is LABELS
    assert labels_of_batch({"loss": 1, "labels": 1 - LABELS}, ["a", LABELS]) is LABELS  # labels of something else


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((1, 2, LABELS), r"must be a pair \(inputs, labels\), got a tuple of 3"),
        (LABELS, r"must be a pair \(inputs, labels\), got a Tensor"),
        ({"images": 1, "classes": LABELS}, r"got a dict with the keys 'images', 'classes'"),
        ((1, [3, 4]), r"must be a tensor \(b,\), got a list of 2"),
        ((1, LABELS[:, None]), r"must be a tensor \(b,\), got a tensor \(2, 1\)"),
        ((1, LABELS[0]), r"must be a tensor \(b,\), got a tensor \(\)\. One label is that of an item, not of a batch"),
        ((1, 3), r"must be a tensor \(b,\), got a int\. One label is .*: give the dataloader a batch_size"),
    ],
)
def test_a_batch_without_labels_says_what_it_is(batch, message):
    with pytest.raises(ValueError, match=message):
        labels_of_batch(None, batch)


def test_forward_takes_inputs_of_a_pair_only():
    assert inputs_of_batch([{"text": "a"}, LABELS]) == {"text": "a"}
    with pytest.raises(ValueError, match="have validation_step and test_step return"):
        inputs_of_batch({"images": 1, "labels": LABELS})


def test_dataloaders_have_names():
    one, two, three = (DataLoader(torch.arange(size)) for size in (1, 2, 3))
    assert named_loaders(one) == {0: one}
    assert named_loaders([one, two]) == {0: one, 1: two}
    assert named_loaders({"a": one, "b": [two, three]}) == {"a": one, "b/0": two, "b/1": three}
    assert loader_at(one, 0) is one
    assert loader_at({"a": one, "b": [two, three]}, 2) is three


def test_a_list_of_batches_is_no_dataloader():
    check_loaders([DataLoader(LABELS), {"a": iter([])}])
    for batches in ([(LABELS, LABELS)] * 2, [LABELS], {"a": {"labels": LABELS}}):
        with pytest.raises(
            ValueError, match=r"is a Tensor\. Lightning takes .* DataLoader\(batches, batch_size=None\)"
        ):
            check_loaders(batches)
