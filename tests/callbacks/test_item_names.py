import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from lightning_recall.callbacks.item_names import class_name, class_names_of, paths_of, write_items


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
