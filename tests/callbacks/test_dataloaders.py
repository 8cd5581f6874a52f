import pytest
import torch
from torch.utils.data import DataLoader

from lightning_recall.callbacks.dataloaders import check_loaders, loader_at, named_loaders

LABELS = torch.tensor([3, 4])


def test_dataloaders_have_names():
    one, two, three = (DataLoader(torch.arange(size)) for size in (1, 2, 3))
    assert named_loaders(one) == {0: one}
    assert named_loaders([one, two]) == {0: one, 1: two}
    assert named_loaders({"a": one, "b": [two, three]}) == {"a": one, "b/0": two, "b/1": three}
    assert loader_at(one, 0) is one
    assert loader_at({"a": one, "b": [two, three]}, 2) is three


def test_a_list_of_batches_is_not_a_list_of_dataloaders():
    check_loaders([DataLoader(LABELS), {"a": iter([])}])
    for batches in ([(LABELS, LABELS)] * 2, [LABELS], {"a": {"labels": LABELS}}):
        with pytest.raises(
            ValueError, match=r"is a tensor \(2,\)\. Lightning treats .* DataLoader\(batches, batch_size=None\)"
        ):
            check_loaders(batches)
