from collections import UserDict

import numpy as np
import pytest
import torch

from lightning_recall.batch import (
    IGNORED_LABEL,
    chunks_of_batch,
    evaluation_inputs,
    evaluation_labels,
    is_pair,
    labels_of_pair,
    type_and_shape,
)

IMAGES, LABELS = torch.zeros(4, 3), torch.tensor([0, 0, 1, IGNORED_LABEL])
NOT_PAIRS = [IMAGES, "ab", (IMAGES,), (IMAGES, [0, 0]), (IMAGES, torch.tensor(3)), {"x": IMAGES, "y": LABELS}, None]


def test_the_ignored_label_is_the_one_of_torch():
    logits = torch.randn(2, 3)
    ignored = torch.tensor([1, IGNORED_LABEL])
    expected = torch.nn.functional.cross_entropy(logits[:1], ignored[:1])
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, ignored), expected)


@pytest.mark.parametrize(
    "pair", [(IMAGES, LABELS), [IMAGES, LABELS], ({"ids": IMAGES}, LABELS), ((IMAGES, None), LABELS)]
)
def test_a_pair_is_one_chunk(pair):
    assert is_pair(pair)
    ((inputs, labels),) = chunks_of_batch(pair)
    assert inputs is pair[0]
    assert labels is labels_of_pair(pair) is LABELS


@pytest.mark.parametrize("batch", NOT_PAIRS, ids=lambda batch: type(batch).__name__)
def test_other_batches_are_not_pairs(batch):
    assert not is_pair(batch)
    assert labels_of_pair(batch) is None
    assert chunks_of_batch(batch) == []


def test_a_list_of_pairs_is_its_chunks():
    chunks = chunks_of_batch([(IMAGES[:2], LABELS[:2]), [IMAGES[2:], LABELS[2:]]])
    assert [labels.tolist() for _, labels in chunks] == [[0, 0], [1, IGNORED_LABEL]]
    assert chunks_of_batch([(IMAGES, LABELS), IMAGES, (IMAGES, LABELS)]) == []


def test_evaluation_takes_the_inputs_of_a_pair():
    assert evaluation_inputs([IMAGES, LABELS]) is IMAGES
    with pytest.raises(ValueError, match=r"must be a pair .* got a dict with the keys 'image', 'target'"):
        evaluation_inputs({"image": IMAGES, "target": LABELS})


def test_labels_that_the_step_returns_come_first():
    returned = LABELS + 1
    assert evaluation_labels({"embeddings": IMAGES, "labels": returned}, (IMAGES, LABELS)) is returned
    assert evaluation_labels(IMAGES, {"labels": LABELS}) is LABELS
    assert evaluation_labels({"labels": returned}, (IMAGES, LABELS)) is LABELS  # outputs without embeddings


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"must be a tensor \(b,\), got a list of 2\.$"),
        (torch.zeros(2, 2), r"got a tensor \(2, 2\)\.$"),
        (torch.tensor(1), r"got a tensor \(\)\. .* set batch_size in the DataLoader"),
        (np.int64(1), "got a int64. .* set batch_size in the DataLoader"),
    ],
)
def test_wrong_evaluation_labels_are_rejected(labels, message):
    with pytest.raises(ValueError, match=message):
        evaluation_labels(None, (IMAGES, labels))


def test_values_are_described_by_type_and_size():
    assert type_and_shape(IMAGES) == "a tensor (4, 3)"
    assert type_and_shape((1, 2, 3)) == "a tuple of 3"
    assert type_and_shape({"a": 1}) == "a dict with the keys 'a'"
    assert type_and_shape(3.5) == "a float"


TWO = torch.tensor([3, 4])


def test_labels_are_those_of_the_step_otherwise_of_the_batch():
    assert evaluation_labels({"embeddings": 1, "labels": TWO}, object()) is TWO
    assert evaluation_labels({"embeddings": 1}, UserDict(text="a", labels=TWO)) is TWO
    assert evaluation_labels(None, ({"text": "a"}, TWO)) is TWO
    assert evaluation_labels({"loss": 1, "labels": 1 - TWO}, ["a", TWO]) is TWO  # no embeddings beside them


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((1, 2, TWO), r"must be a pair \(inputs, labels\), got a tuple of 3"),
        (TWO, r"must be a pair \(inputs, labels\), got a tensor \(2,\)"),
        ({"images": 1, "classes": TWO}, r"got a dict with the keys 'images', 'classes'"),
        ((1, [3, 4]), r"must be a tensor \(b,\), got a list of 2"),
        ((1, TWO[:, None]), r"must be a tensor \(b,\), got a tensor \(2, 1\)"),
        ((1, TWO[0]), r"must be a tensor \(b,\), got a tensor \(\)\. The batch contains a single item without a b"),
        ((1, 3), r"must be a tensor \(b,\), got a int\. The batch contains a single item .*: set batch_size"),
    ],
)
def test_a_batch_without_labels_is_described(batch, message):
    with pytest.raises(ValueError, match=message):
        evaluation_labels(None, batch)
