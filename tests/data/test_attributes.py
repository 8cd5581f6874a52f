import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split

from lightning_recall.data.attributes import attribute_of, ground_truth_of, labels_of, leaves, roles_of


class Data(TensorDataset):
    def __init__(self, size, **attributes):
        super().__init__(torch.arange(size))
        for name, values in attributes.items():
            setattr(self, name, values)


def test_subsets_have_the_attributes_of_their_items():
    data = Data(6, is_query=np.array([1, 0, 0, 1, 0, 1], bool), groups=torch.arange(6) * 10, paths=list("abcdef"))
    part = Subset(Subset(data, [5, 4, 0, 2]), [2, 0])  # items 0 and 5
    assert attribute_of(part, "paths").tolist() == ["a", "f"]
    assert {name: values.tolist() for name, values in roles_of(part).items()} == {
        "is_query": [True, True],
        "groups": [0, 50],
    }
    for half in random_split(data, [2, 4], torch.Generator().manual_seed(0)):
        assert attribute_of(half, "paths").tolist() == ["abcdef"[index] for index in half.indices]
    both = ConcatDataset([part, data])
    assert roles_of(both)["groups"].tolist() == [0, 50, 0, 10, 20, 30, 40, 50]
    assert attribute_of(both, "paths").tolist() == list("afabcdef")
    assert leaves(both) == [data, data]


def test_missing_attributes_are_none():
    assert attribute_of(Subset(Data(3), [1]), "paths") is None
    assert attribute_of(ConcatDataset([Data(1, paths=["a"]), Data(1)]), "paths") is None  # only one part has it
    assert roles_of(Data(3)) == {}
    assert roles_of(None) == {}
    assert ground_truth_of(ConcatDataset([Data(3)])) is None


def test_roles_of_only_some_parts_or_items_are_rejected():
    some = ConcatDataset([Data(2, is_query=[True, False], is_gallery=[False, True]), Data(2)])
    with pytest.raises(ValueError, match="some of the 2 data sets in a ConcatDataset have is_query; number 1 lacks"):
        roles_of(some)
    with pytest.raises(ValueError, match="groups of Data has 2 entries, but the data set has 3 items"):
        roles_of(Data(3, groups=[1, 2]))


def test_a_ground_truth_is_only_valid_for_the_whole_data_set():
    data = Data(3, ground_truth=[([1], [2], [])])
    assert ground_truth_of(data) == [([1], [2], [])]
    for other in (Subset(data, [0, 1]), ConcatDataset([Data(2), data])):
        with pytest.raises(ValueError, match=f"holds indices, which do not apply to a {type(other).__name__}"):
            ground_truth_of(other)


class Wrapper:
    """A user's wrapper of another data set that forwards only its items."""

    def __init__(self, base, **attributes):
        self.base = base
        vars(self).update(attributes)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.base[index]


ROLE_DATA = Data(4, is_query=[True, False, True, False], is_gallery=[False, True, False, True])


@pytest.mark.parametrize(
    ("data", "attribute"),
    [
        (Wrapper(ROLE_DATA), "base"),
        (Subset(Wrapper(ROLE_DATA), [0, 1]), "base"),
        (Wrapper(ConcatDataset([Data(2), Subset(ROLE_DATA, [0, 1])])), "base"),
        (Wrapper(Wrapper(ROLE_DATA)), "base.base"),
        (Wrapper(None, parts={"a": Data(4), "b": ROLE_DATA}), "parts"),
        (Wrapper(None, parts=[Data(4), ROLE_DATA]), "parts"),
    ],
)
def test_a_wrapper_that_hides_roles_is_rejected(data, attribute):
    with pytest.raises(ValueError, match=f"Wrapper does not define is_query, but its attribute {attribute} does"):
        roles_of(data)


def test_a_wrapper_that_hides_groups_or_a_ground_truth_is_rejected():
    for name, values in (("groups", [1, 1, 2, 2]), ("ground_truth", [([1], [2], [])])):
        with pytest.raises(ValueError, match=f"Wrapper does not define {name}, but its attribute base does"):
            roles_of(Wrapper(Data(4, **{name: values})))


def test_a_wrapper_that_defines_its_roles_is_accepted():
    roles = {"is_query": [False, True, True, True], "is_gallery": [True] * 4}
    found = roles_of(Wrapper(ROLE_DATA, **roles))
    assert {name: values.tolist() for name, values in found.items()} == roles
    assert roles_of(Wrapper(ROLE_DATA, is_query=None, is_gallery=None)) == {}
    with pytest.raises(ValueError, match="Wrapper does not define is_gallery"):
        roles_of(Wrapper(ROLE_DATA, is_query=roles["is_query"]))

    class Forwards(Wrapper):
        def __getattr__(self, name):
            return getattr(self.base, name)

    assert roles_of(Forwards(ROLE_DATA))["is_query"].tolist() == [True, False, True, False]
    itself = Wrapper(Data(4))
    itself.base.owner = itself  # a reference cycle
    assert roles_of(itself) == {}


def test_labels_of_common_data_sets_are_found():
    assert labels_of(TensorDataset(torch.zeros(3, 2), torch.tensor([4, 5, 6]))).tolist() == [4, 5, 6]
    assert labels_of(Subset(Wrapper(0, targets=[4, 5, 6, 7]), [3, 1])).tolist() == [7, 5]
    assert labels_of(Data(3, labels=np.array([1, 2, 3]), targets=[4, 5, 6])).tolist() == [1, 2, 3]
    for unknown in (None, [1, 2], Wrapper(0), Wrapper(0, targets=["a"] * 4), Data(3, labels="abc", targets=[[1], [2]])):
        found = labels_of(unknown)
        assert found is None or isinstance(unknown, Data)
    assert labels_of(ConcatDataset([Data(1), Wrapper(0)])) is None


def test_a_wrapped_data_set_must_have_an_entry_for_each_item():
    short = Data(6, is_query=np.ones(4, bool))
    with pytest.raises(ValueError, match="is_query of Data has 4 entries, but the data set has 6 items"):
        roles_of(Subset(short, [0, 1, 2]))
    with pytest.raises(ValueError, match="is_query of Data has 8 entries, but the data set has 6 items"):
        roles_of(ConcatDataset([Data(6, is_query=np.ones(8, bool)), short]))  # 12 entries and 12 items in all


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"is_query": True}, r"is_query of Data must be bool, one for each item \(N,\), got bool of shape \(\)"),
        ({"is_query": np.ones(3, int)}, r"is_query of Data must be bool, .* got int64 of shape \(3,\)"),
        ({"groups": ["a", "b", "c"]}, r"groups of Data must be integers, .* got <U1 of shape \(3,\)"),
    ],
)
def test_roles_of_another_type_are_rejected(attributes, message):
    with pytest.raises(ValueError, match=message):
        roles_of(Data(3, **attributes))
