import pytest
import torch

from lightning_recall.tensors import arange_within_groups, at_least_float32, holds_integers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_every_other_dtype_becomes_float32(dtype):
    values = torch.tensor([0, 1]).to(dtype)
    assert at_least_float32(values).dtype == torch.float32
    assert at_least_float32(values).tolist() == [0.0, 1.0]


def test_integers_are_neither_floats_nor_bools():
    integers = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    others = {torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.bool}
    assert {dtype for dtype in integers | others if holds_integers(torch.zeros(2, dtype=dtype))} == integers


def test_float64_is_returned_unchanged():
    values = torch.tensor([1 / 3], dtype=torch.float64)
    assert at_least_float32(values) is values


@pytest.mark.parametrize("counts", [[], [0], [3], [0, 2, 0, 0, 4, 1, 0]])
def test_every_group_counts_from_zero(counts):
    expected = [number for count in counts for number in range(count)]
    assert arange_within_groups(torch.tensor(counts, dtype=torch.int64)).tolist() == expected
