from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_recall import checks

EMBEDDINGS, LABELS = torch.ones(4, 2), torch.tensor([0, 0, 1, 1])


def test_tensors_and_none_pass():
    checks.check_tensors(embeddings=EMBEDDINGS, is_query=None)
    with pytest.raises(ValueError, match=r"labels must be a tensor, got ndarray: convert it with torch\.as_tensor"):
        checks.check_tensors(embeddings=EMBEDDINGS, labels=LABELS.numpy())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "labels must be a tensor, got list"),
        (torch.tensor([0.0, 1.0]), r"integers of shape \(N,\), got torch.float32 \(2,\)"),
        (torch.tensor([0j]), r"integers of shape \(N,\), got torch.complex64 \(1,\)"),
        (torch.tensor([[0, 1]]), r"integers of shape \(N,\), got torch.int64 \(1, 2\)"),
        (torch.tensor(3), r"integers of shape \(N,\), got torch.int64 \(\)"),
    ],
)
def test_wrong_labels_are_rejected(labels, message):
    with pytest.raises(ValueError, match=message):
        checks.check_labels(labels)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.uint64])
def test_labels_of_any_integer_type_pass(dtype):
    checks.check_labels(torch.ones(3).to(dtype))


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (EMBEDDINGS[0], LABELS, r"floating point of shape \(N, D\), got torch.float32 \(2,\)"),
        (EMBEDDINGS.long(), LABELS, r"floating point of shape \(N, D\), got torch.int64 \(4, 2\)"),
        (EMBEDDINGS, LABELS[:3], r"one label per embedding, shape \(4,\), got shape \(3,\)"),
        (EMBEDDINGS, LABELS.float(), "labels must be integers"),
        (EMBEDDINGS, LABELS.to("meta"), "labels are on meta, embeddings on cpu"),
    ],
)
def test_embeddings_and_labels_must_match(embeddings, labels, message):
    checks.check_labelled_embeddings(EMBEDDINGS, LABELS)
    with pytest.raises(ValueError, match=message):
        checks.check_labelled_embeddings(embeddings, labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(value):
    embeddings = torch.ones(3, 2)
    checks.check_finite(embeddings)
    checks.check_finite(torch.full((4, 2), 3e38))  # the sum overflows
    embeddings[1, 1] = value
    with pytest.raises(ValueError, match="embeddings contain NaN or infinity"):
        checks.check_finite(embeddings)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_python_and_numpy_pass(value):
    checks.check_integer("size", value, 3)
    with pytest.raises(ValueError, match="size must be at least 4, got 3"):
        checks.check_integer("size", value, 4)


@pytest.mark.parametrize("value", [3.0, True, np.True_, "3", None, torch.tensor(3)])
def test_other_values_are_not_integers(value):
    with pytest.raises(ValueError, match="size must be an integer, at least 1, got"):
        checks.check_integer("size", value, 1)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_must_be_finite_and_above_zero(value):
    checks.check_above_zero(tau=1e-9, gamma=256)
    with pytest.raises(ValueError, match="gamma must be a finite number above 0, got"):
        checks.check_above_zero(tau=1.0, gamma=value)


def test_cut_offs_become_a_tuple_of_python_integers():
    assert checks.ks_to_tuple(5) == (5,)
    checked = checks.ks_to_tuple([np.int64(10), 1])
    assert checked == (10, 1)
    assert [type(k) for k in checked] == [int, int]


@pytest.mark.parametrize("ks", [(), 0, (1, 0), (1, 1), (1.0,), (True,), "1"])
def test_wrong_cut_offs_are_rejected(ks):
    with pytest.raises(ValueError, match="ks must contain one or more distinct integers, each at least 1, got"):
        checks.ks_to_tuple(ks)


def test_parts_must_agree():
    module = SimpleNamespace(num_classes=3, ignore_index=255)
    checks.check_same(module, "loss", object(), ("num_classes", "ignore_index"))
    with pytest.raises(ValueError, match=r"ignore_index of the loss \(SimpleNamespace\) is -100, .* is 255"):
        checks.check_same(module, "loss", SimpleNamespace(ignore_index=-100), ("num_classes", "ignore_index"))
