import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from lightning_recall.callbacks.item_names import class_name, class_names_of, paths_of, write_items
from lightning_recall.embedding_sets import map_embedding_set, read_embedding_set
from lightning_recall.embedding_sets.shards import save_shard


class Named(TensorDataset):
    """Six items of three classes."""

    class_names = ("ant", "bee", "cat")
    paths = np.array([f"{i}/é{i}.jpg".encode() for i in range(6)])

    def __init__(self):
        super().__init__(torch.rand(6, 3), torch.arange(6) // 2)


class Others(Named):
    class_names = ("ant", "bee", "dog")


def test_names_are_found_in_subsets_and_joined_data_sets():
    names = Named.class_names
    assert class_names_of(Named()) == names
    assert class_names_of(Subset(Subset(Named(), [5, 1]), [0])) == names
    assert class_names_of(ConcatDataset([Named(), Subset(Named(), [1])])) == names
    assert class_names_of(ConcatDataset([Named(), Others()])) is None  # label 2 has two names
    assert class_names_of(ConcatDataset([Named(), Subset(TensorDataset(torch.rand(2, 3)), [1])])) is None
    assert class_names_of(TensorDataset(torch.rand(2, 3))) is None
    assert class_names_of(None) is None
    assert [class_name(names, label) for label in (0, 2, 3, -1)] == ["ant", "cat", "", ""]


def test_names_and_files_of_torchvision(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "x.png")
    folder = ImageFolder(tmp_path)
    assert class_names_of(folder) == ("a", "b")
    assert paths_of(folder, [1, 0]) == [str(tmp_path / "b/x.png"), str(tmp_path / "a/x.png")]
    assert paths_of(Subset(folder, [1]), [0]) == [str(tmp_path / "b/x.png")]


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_items_are_listed_with_path_label_and_class(tmp_path):
    write_items(Subset(Named(), [5, 2]), tmp_path / "new/items.csv")
    assert rows_of(tmp_path / "new/items.csv") == [
        {"id": "0", "path": "5/é5.jpg", "label": "2", "class": "cat"},
        {"id": "1", "path": "2/é2.jpg", "label": "1", "class": "bee"},
    ]


@pytest.mark.parametrize(("attribute", "missing"), [("class_names", "class"), ("paths", "path")])
def test_what_a_data_set_lacks_is_left_out(attribute, missing, tmp_path):
    data = Named()
    setattr(data, attribute, None)
    write_items(data, tmp_path / "items.csv")
    assert list(rows_of(tmp_path / "items.csv")[0]) == [
        name for name in ("id", "path", "label", "class") if name != missing
    ]


@pytest.mark.parametrize("data", [TensorDataset(torch.rand(2, 3), torch.arange(2)), [], None, iter([])])
def test_nothing_is_written_about_data_without_names(data, tmp_path):
    write_items(data, tmp_path / "items.csv")
    assert list(Path(tmp_path).iterdir()) == []


class WithRoles(TensorDataset):
    """Four items without paths and class names."""

    is_query = np.array([True, False, True, False])
    is_gallery = (False, True, False, True)
    groups = torch.tensor([7, 7, 8, 9])


def test_roles_are_listed_and_read_again(tmp_path):
    data = Subset(WithRoles(torch.rand(4, 3), torch.arange(4)), [3, 2, 0])
    write_items(data, tmp_path / "items.csv")
    expected = [("0", "1", "9"), ("1", "0", "8"), ("1", "0", "7")]
    for number, (row, (query, gallery, group)) in enumerate(
        zip(rows_of(tmp_path / "items.csv"), expected, strict=True)
    ):
        label = row.pop("label")
        assert label == str([3, 2, 0][number])
        assert row == {"id": str(number), "is_query": query, "is_gallery": gallery, "group": group}
    arrays = {"embeddings": torch.rand(3, 2), "ids": torch.arange(3)}
    save_shard(tmp_path, 0, "npz", arrays, "")
    for found in (read_embedding_set(tmp_path), map_embedding_set(tmp_path)):
        assert found.is_query.tolist() == [False, True, True]
        assert found.is_gallery.tolist() == [True, False, False]
        assert found.groups.tolist() == [9, 8, 7]


class Hidden(Dataset):
    """A wrapper that does not say which items are queries."""

    paths = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")

    def __init__(self):
        self.data = WithRoles(torch.rand(4, 3), torch.arange(4))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.data[index]


def test_hidden_roles_are_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"^items.csv does not say which images are queries and gallery: .*Hidden"):
        write_items(Hidden(), tmp_path / "items.csv")
    assert rows_of(tmp_path / "items.csv")[1] == {"id": "1", "path": "b.jpg"}
