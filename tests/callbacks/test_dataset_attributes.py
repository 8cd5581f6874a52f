import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split

from lightning_recall.callbacks.dataset_attributes import attribute_of, ground_truth_of, leaves, roles_of


class Data(TensorDataset):
    def __init__(self, size, **attributes):
        super().__init__(torch.arange(size))
        for name, values in attributes.items():
            setattr(self, name, values)


def test_parts_have_the_attributes_of_their_rows():
    data = Data(6, is_query=np.array([1, 0, 0, 1, 0, 1], bool), groups=torch.arange(6) * 10, paths=list("abcdef"))
    part = Subset(Subset(data, [5, 4, 0, 2]), [2, 0])  # rows 0 and 5
    assert attribute_of(part, "paths").tolist() == ["a", "f"]
    assert {name: values.tolist() for name, values in roles_of(part).items()} == {
        "is_query": [True, True],
        "groups": [0, 50],
    }
    for half in random_split(data, [2, 4], torch.Generator().manual_seed(0)):
        assert attribute_of(half, "paths").tolist() == ["abcdef"[row] for row in half.indices]
    both = ConcatDataset([part, data])
    assert roles_of(both)["groups"].tolist() == [0, 50, 0, 10, 20, 30, 40, 50]
    assert attribute_of(both, "paths").tolist() == list("afabcdef")
    assert leaves(both) == [data, data]


def test_what_is_not_there_is_none():
    assert attribute_of(Subset(Data(3), [1]), "paths") is None
    assert attribute_of(ConcatDataset([Data(1, paths=["a"]), Data(1)]), "paths") is None  # of some rows only
    assert roles_of(Data(3)) == {}
    assert roles_of(None) == {}
    assert ground_truth_of(ConcatDataset([Data(3)])) is None


def test_roles_of_some_parts_or_rows_only_are_refused():
    some = ConcatDataset([Data(2, is_query=[True, False], is_gallery=[False, True]), Data(2)])
    with pytest.raises(ValueError, match="Only some of the 2 data sets in a ConcatDataset have is_query, number 1 has"):
        roles_of(some)
    with pytest.raises(ValueError, match="groups has 2 entries, but the data set 3 items"):
        roles_of(Data(3, groups=[1, 2]))


def test_a_ground_truth_is_that_of_the_whole_data_set():
    data = Data(3, ground_truth=[([1], [2], [])])
    assert ground_truth_of(data) == [([1], [2], [])]
    for other in (Subset(data, [0, 1]), ConcatDataset([Data(2), data])):
        with pytest.raises(ValueError, match=f"row numbers, which a {type(other).__name__} changes"):
            ground_truth_of(other)
