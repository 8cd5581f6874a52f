import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_recall.embedding_sets import load_embeddings, map_embedding_set, read_embedding_set
from lightning_recall.embedding_sets.shards import save_shard

EMBEDDINGS = torch.arange(12.0).reshape(4, 3)
LABELS = torch.tensor([7, 7, 9, 9])
ABOUT = {"model": {"weights": "abc"}, "data": {"": {"folder": "/photos", "number of items": "4"}}}


def write(folder, ids=(2, 0, 3, 1), **arrays):
    ids = torch.tensor(ids)
    save_shard(folder, 0, "npz", {"embeddings": EMBEDDINGS[ids], "ids": ids, "labels": LABELS[ids], **arrays}, "hash")


def items(folder, header, *rows):
    (folder / "items.csv").write_bytes(b"\n".join([header, *rows]) + b"\n")


def test_a_folder_is_read_with_all_that_is_known(tmp_path):
    write(tmp_path)
    (tmp_path / "about.json").write_text(json.dumps(ABOUT))
    rows = [b"0,a.jpg,7,cat,1,0,5", b"1,\xff.jpg,7,cat,0,1,5", b'2,"b,c.jpg",9,dog,1,1,6', b"3,d.jpg,9,dog,0,1,6"]
    items(tmp_path, b"id,path,label,class,is_query,is_gallery,group", *rows)
    (tmp_path / "model").mkdir()
    found = read_embedding_set(tmp_path)
    assert torch.equal(found.embeddings, EMBEDDINGS)
    assert found.ids.tolist() == [0, 1, 2, 3]
    assert found.labels.tolist() == LABELS.tolist()
    assert found.paths == ["a.jpg", os.fsdecode(b"\xff.jpg"), "b,c.jpg", "d.jpg"]
    assert found.classes == ["cat", "cat", "dog", "dog"]
    assert found.is_query.tolist() == [True, False, True, False]
    assert found.is_gallery.tolist() == [False, True, True, True]
    assert found.groups.tolist() == [5, 5, 6, 6]
    assert (found.is_query.dtype, found.is_gallery.dtype, found.groups.dtype) == (torch.bool, torch.bool, torch.int64)
    assert found.model == {"weights": "abc"}
    assert found.model_folder == tmp_path / "model"
    assert str(found.image_folder) == "/photos"


def test_one_of_several_dataloaders_has_its_own_folder(tmp_path):
    write(tmp_path / "small")
    data = {"large": {"folder": "/large"}, "small": {"folder": "/small"}}
    (tmp_path / "about.json").write_text(json.dumps({"model": {}, "data": data}))
    (tmp_path / "model").mkdir()
    found = read_embedding_set(tmp_path / "small")
    assert str(found.image_folder) == "/small"
    assert found.model_folder == tmp_path / "model"


@pytest.mark.parametrize("about", ["{", "[]", '{"model": {}}', '{"model": 3, "data": {}}', '{"model": {}, "data": []}'])
def test_a_note_of_another_program_is_ignored(about, tmp_path):
    write(tmp_path)
    (tmp_path / "about.json").write_text(about)
    found = read_embedding_set(tmp_path)
    assert found.model == {}
    assert found.paths is found.image_folder is found.model_folder is None


def test_files_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=EMBEDDINGS.half(), labels=LABELS)
    found = read_embedding_set(tmp_path / "a.npz")
    assert found.embeddings.dtype == torch.float16
    assert found.ids.tolist() == [0, 1, 2, 3]
    assert found.labels.tolist() == LABELS.tolist()
    save_file({"embeddings": EMBEDDINGS, "ids": torch.tensor([4, 1, 9, 2])}, tmp_path / "b.safetensors")
    found = read_embedding_set(str(tmp_path / "b.safetensors"))
    assert found.ids.tolist() == [1, 2, 4, 9]
    assert torch.equal(found.embeddings, EMBEDDINGS[[1, 3, 0, 2]])
    assert found.labels is None


def test_a_path_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a")
    items(tmp_path / "a", b"id,path", b"0,a", b"1,b", b"2,c", b"3,d")
    assert read_embedding_set("~/a").paths == ["a", "b", "c", "d"]
    assert load_embeddings("~/a")["ids"].tolist() == [0, 1, 2, 3]
    assert map_embedding_set("~/a").ids.tolist() == [2, 0, 3, 1]


def test_labels_of_another_shape_are_no_classes(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=EMBEDDINGS, labels=np.zeros((4, 2)))
    assert read_embedding_set(tmp_path / "a.npz").labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": EMBEDDINGS, "ids": np.array([0, 1, 1, 2])}, "ids must be distinct"),
        ({"embeddings": EMBEDDINGS, "labels": np.zeros(3)}, "damaged"),
        ({"embeddings": EMBEDDINGS[0]}, r"must be floating point, of shape \(N, D\)"),
        ({"embeddings": EMBEDDINGS[:0]}, "N of at least 1"),
        ({"embeddings": EMBEDDINGS.long()}, "floating point"),
        ({"embeddings": EMBEDDINGS / 0}, "a.npz: .*NaN"),
        ({"vectors": EMBEDDINGS}, "a.npz has no array `embeddings`; it has vectors"),
    ],
)
def test_wrong_files_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_embedding_set(tmp_path / "a.npz")


def test_a_damaged_file_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=EMBEDDINGS)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: it is damaged"):
        read_embedding_set(tmp_path / "a.npz")


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"must be a folder of embeddings, or a \.npz"):
        read_embedding_set(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="no embeddings in"):
        read_embedding_set(tmp_path / "missing")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([b"0,a", b"1,b", b"2,c"], "no row for 3"),
        ([b"0,a", b"x,b"], "damaged"),
        ([b"0,a", b"1,b", b"2,c", b'3,d\x00\xff,"', b"0"], "damaged|no row"),
    ],
)
def test_items_of_other_embeddings_are_refused(rows, message, tmp_path):
    write(tmp_path)
    items(tmp_path, b"id,path", *rows[:4])
    if message == "damaged|no row":
        items(tmp_path, b"path,number", *rows)
    with pytest.raises(ValueError, match=message):
        read_embedding_set(tmp_path)
