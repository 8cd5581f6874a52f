import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.indexes.items import Item, image_file, items_of, new_items, read_items, write_items

EMBEDDINGS = torch.eye(3)


def test_items_of_a_set():
    known = EmbeddingSet(
        Path(), EMBEDDINGS, torch.tensor([4, 7, 9]), torch.tensor([1, 1, 0]), ["a", "b", "c"], ["cat", "cat", "dog"]
    )
    assert items_of(known) == [Item(4, "a", 1, "cat"), Item(7, "b", 1, "cat"), Item(9, "c", 0, "dog")]
    unknown = items_of(EmbeddingSet(Path(), EMBEDDINGS, torch.arange(3)))
    assert [(item.id, item.path, item.label, item.class_name) for item in unknown] == [
        (i, "", None, "") for i in range(3)
    ]
    assert len({item.checksum for item in unknown}) == 3
    assert items_of(EmbeddingSet(Path(), EMBEDDINGS.half(), torch.arange(3))) == unknown


def test_a_file_is_read_as_it_was_written(tmp_path):
    items = [
        Item(3, 'a, "b"\n.jpg', 0, "<cat>"),
        Item(5, os.fsdecode(b"\xff.jpg"), None, "é"),
        Item(9, checksum="00ff00ff"),
    ]
    write_items(tmp_path / "items.csv", items)
    assert read_items(tmp_path / "items.csv") == items


@pytest.mark.parametrize("text", ["", "id,path\n1,a\n", "id,path,label,class,checksum\nx,a,,,\n", "\0"])
def test_a_damaged_file(text, tmp_path):
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(ValueError, match=r"items.csv is damaged: build the index again"):
        read_items(tmp_path / "items.csv")


def test_files_are_known_by_their_path():
    known = [Item(0, "x/a.jpg"), Item(5, "/other/b.jpg"), Item(2, checksum="1")]
    given = [Item(0, "a.jpg", 1, "x"), Item(1, "c.jpg"), Item(2, "../y/d.jpg"), Item(3, "/other/b.jpg")]
    found = new_items(known, given, "/photos", "/photos/x")
    assert found == {1: Item(6, "x/c.jpg"), 2: Item(7, "y/d.jpg")}
    elsewhere = new_items(known, given[:2], "/photos", "/elsewhere")
    assert elsewhere == {0: Item(6, "/elsewhere/a.jpg", 1, "x"), 1: Item(7, "/elsewhere/c.jpg")}


def test_items_without_path_are_known_by_their_id():
    known = [Item(0, checksum="aa"), Item(1, checksum="bb")]
    assert new_items(known, [Item(1, checksum="bb"), Item(3, checksum="bb")], "", "") == {1: Item(3, checksum="bb")}
    with pytest.raises(ValueError, match="another item with id 1: give the added embeddings other ids"):
        new_items(known, [Item(1, checksum="cc")], "", "")
    with pytest.raises(ValueError, match="another item with id 4"):
        new_items([Item(4, "a.jpg")], [Item(4, checksum="cc")], "", "")


def test_image_file():
    assert image_file("b/../a.jpg", "/photos") == "/photos/a.jpg"
    assert image_file("/a.jpg", "/photos") == "/a.jpg"
    assert image_file("", "/photos") == ""
    assert image_file("a.jpg", "") == os.path.abspath("a.jpg")
    assert np.unique([image_file("a.jpg", folder) for folder in ("/photos", "/photos/")]).size == 1
