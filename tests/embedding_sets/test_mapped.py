import csv
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_recall.embedding_sets import load_embeddings, map_embedding_set, read_embedding_set
from lightning_recall.embedding_sets.shards import save_shard
from lightning_recall.search import EmbeddingBlocks

EMBEDDINGS = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(23) // 3


@pytest.fixture(params=["npz", "safetensors"])
def folder(request, tmp_path):
    """Shards of two processes that took turns; the second has repeated item 0, as padding."""
    for rank, ids in enumerate((torch.arange(0, 23, 2), torch.tensor([*range(1, 23, 2), 0]))):
        for part in ids.split(7):
            arrays = {"embeddings": EMBEDDINGS[part], "ids": part, "labels": LABELS[part]}
            save_shard(tmp_path / "set", rank, request.param, arrays, "the state")
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def _views():
    """torch says that it cannot write to files that are mapped for reading."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        yield


def values(mapped):
    """All embeddings, in the order of the files."""
    return EmbeddingBlocks(mapped.pieces, normalize=False).block(0, len(mapped.ids)) * max(EMBEDDINGS.norm(dim=1))


def test_it_holds_what_load_embeddings_reads(folder):
    mapped, loaded = map_embedding_set(folder), load_embeddings(folder)
    order = mapped.ids.argsort()
    assert torch.equal(mapped.ids[order], torch.arange(23))
    assert torch.equal(mapped.labels[order], loaded["labels"])
    torch.testing.assert_close(values(mapped)[order], loaded["embeddings"])
    assert torch.equal(mapped.ids[:12], torch.arange(0, 23, 2))  # the order of the files
    assert mapped.is_query is mapped.is_gallery is mapped.groups is None


def test_the_files_are_mapped(folder):
    """A later change of a file shows in what was mapped."""
    mapped, path = map_embedding_set(folder), min(folder.iterdir())
    content, first = path.read_bytes(), EMBEDDINGS[0].numpy().tobytes()
    with path.open("r+b") as file:
        file.seek(content.index(first))
        file.write(np.full(5, 7, np.float32).tobytes())
    piece = torch.as_tensor(mapped.pieces[0])
    assert piece[0].tolist() == [7] * 5
    assert torch.equal(piece[1], EMBEDDINGS[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_one_file(tmp_path, suffix, dtype):
    file, arrays = tmp_path / f"one.{suffix}", {"embeddings": EMBEDDINGS.to(dtype), "labels": LABELS}
    np.savez(file, **arrays) if suffix == "npz" else save_file(arrays, file)
    mapped, read = map_embedding_set(file), read_embedding_set(file)
    assert torch.equal(torch.as_tensor(mapped.pieces[0]), read.embeddings)
    assert torch.equal(mapped.ids, read.ids)
    assert torch.equal(mapped.labels, read.labels)


def test_arrays_of_other_programs(tmp_path):
    """Column by column, with labels in 32 bits."""
    arrays = {"embeddings": np.asfortranarray(EMBEDDINGS.numpy()), "labels": LABELS.int().numpy()}
    np.savez(tmp_path / "one.npz", **arrays)
    mapped = map_embedding_set(tmp_path / "one.npz")
    torch.testing.assert_close(values(mapped), EMBEDDINGS)
    assert torch.equal(mapped.labels, LABELS)  # also the dtype
    assert mapped.labels.dtype == torch.int64


def write_items(folder, ids):
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "is_query", "is_gallery", "group"])
        writer.writerows([number, f"{number}.jpg", number % 2, 1 - number % 2, number // 4] for number in ids)


def test_roles_of_items_csv(folder, monkeypatch):
    write_items(folder, range(30))  # of more items than are embedded
    monkeypatch.setattr("lightning_recall.embedding_sets.mapped.ROWS", 4)
    mapped, read = map_embedding_set(folder), read_embedding_set(folder)
    for name in ("is_query", "is_gallery", "groups"):
        field, expected = getattr(mapped, name), getattr(read, name)
        assert field.dtype == expected.dtype
        assert torch.equal(field[mapped.ids.argsort()], expected)


def test_items_csv_may_list_more_items_and_no_roles(tmp_path):
    ids = torch.arange(0, 23, 2)  # a subset, such as the items that one process has embedded
    save_shard(tmp_path, 0, "npz", {"embeddings": EMBEDDINGS[ids], "ids": ids}, "")
    write_items(tmp_path, reversed(range(23)))
    assert map_embedding_set(tmp_path).groups.tolist() == (ids // 4).tolist()
    (tmp_path / "items.csv").write_text("id,path\n0,a.jpg\n")
    mapped = map_embedding_set(tmp_path)
    assert mapped.is_query is mapped.is_gallery is mapped.groups is None


def test_items_csv_of_others_is_refused(folder):
    write_items(folder, range(20))
    with pytest.raises(
        ValueError, match=r"items.csv does not belong to the embeddings beside it: it has no row for 20"
    ):
        map_embedding_set(folder)
    (folder / "items.csv").write_text("id,is_query\n0,yes\n")
    with pytest.raises(ValueError, match=r"items.csv is damaged: run predict again, or delete it"):
        map_embedding_set(folder)


def test_damaged_shards_are_refused(folder):
    path = sorted(folder.iterdir())[1]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{path.name} is damaged, or not a .npz or .safetensors file"):
        map_embedding_set(folder)
    path.unlink()
    save_shard(folder, 5, path.suffix[1:], {"embeddings": EMBEDDINGS[:3], "ids": torch.arange(2)}, "the state")
    with pytest.raises(ValueError, match=r"is damaged: it has embeddings \(3, 5\) and ids \(2,\)"):
        map_embedding_set(folder)


def test_shards_of_another_model_are_refused(folder):
    save_shard(folder, 5, "npz", {"embeddings": EMBEDDINGS[:3], "ids": torch.arange(3), "labels": LABELS[:3]}, "other")
    with pytest.raises(ValueError, match="come from different weights, data or settings"):
        map_embedding_set(folder)


def test_other_files_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "small.npz", embeddings=EMBEDDINGS.numpy())
    with pytest.raises(ValueError, match=r"small.npz is compressed, so it cannot be memory-mapped: save it with"):
        map_embedding_set(tmp_path / "small.npz")
    np.savez(tmp_path / "other.npz", features=EMBEDDINGS.numpy())
    with pytest.raises(ValueError, match=r"other.npz is damaged, or not a .npz or .safetensors file with `embeddings`"):
        map_embedding_set(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="There are no embeddings in"):
        map_embedding_set(tmp_path / "nowhere")
