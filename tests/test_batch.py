from collections import UserDict

import pytest
import torch

from lightning_recall.batch import chunks_of_batch, evaluation_inputs, evaluation_labels

LABELS = torch.tensor([3, 4])


def test_labels_are_those_of_the_step_otherwise_of_the_batch():
    assert evaluation_labels({"embeddings": 1, "labels": LABELS}, object()) is LABELS
    assert evaluation_labels({"embeddings": 1}, UserDict(text="a", labels=LABELS)) is LABELS
    assert evaluation_labels(None, ({"text": "a"}, LABELS)) is LABELS
    assert evaluation_labels({"loss": 1, "labels": 1 - LABELS}, ["a", LABELS]) is LABELS  # no embeddings beside them


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((1, 2, LABELS), r"must be a pair \(inputs, labels\), got a tuple of 3"),
        (LABELS, r"must be a pair \(inputs, labels\), got a tensor \(2,\)"),
        ({"images": 1, "classes": LABELS}, r"got a dict with the keys 'images', 'classes'"),
        ((1, [3, 4]), r"must be a tensor \(b,\), got a list of 2"),
        ((1, LABELS[:, None]), r"must be a tensor \(b,\), got a tensor \(2, 1\)"),
        ((1, LABELS[0]), r"must be a tensor \(b,\), got a tensor \(\)\. A single label belongs to an item, not to a b"),
        ((1, 3), r"must be a tensor \(b,\), got a int\. A single label .*: give the dataloader a batch_size"),
    ],
)
def test_a_batch_without_labels_is_described(batch, message):
    with pytest.raises(ValueError, match=message):
        evaluation_labels(None, batch)


def test_forward_takes_the_inputs_of_a_pair_only():
    assert evaluation_inputs([{"text": "a"}, LABELS]) == {"text": "a"}
    with pytest.raises(ValueError, match="have validation_step and test_step return"):
        evaluation_inputs({"images": 1, "labels": LABELS})


def test_chunks_of_a_batch():
    images, labels = torch.zeros(2, 3), torch.zeros(2)
    for batch, count in (([images, labels], 1), ((images, labels), 1), ([(images, labels)] * 3, 3), ({"a": images}, 0)):
        assert len(chunks_of_batch(batch)) == count
    assert chunks_of_batch([images, images, images]) == []
    assert chunks_of_batch([({"a": images}, labels)])[0][1] is labels
    assert chunks_of_batch((images[0], torch.tensor(3))) == []  # one image, as batch_size=None gives it
    assert chunks_of_batch([(images, labels), (images, "labels")]) == []
