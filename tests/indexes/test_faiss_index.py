import sys

import pytest
import torch

from lightning_recall.indexes.vector_index import load_vectors, make_vectors

pytest.importorskip("faiss")  # an extra


def test_settings_of_the_search_are_saved(tmp_path):
    embeddings = torch.randn(1000, 8)
    for kind in ("hnsw", "ivf"):
        make_vectors("faiss", kind, embeddings).save(tmp_path / kind)
    assert load_vectors("faiss", "hnsw", tmp_path / "hnsw").index.hnsw.efSearch == 128
    lists = load_vectors("faiss", "ivf", tmp_path / "ivf").index
    assert (lists.nlist, lists.nprobe) == (25, 8)  # at most one list for 39 items


def test_product_quantization_compresses_sixteen_times(tmp_path):
    embeddings = torch.randn(2000, 64)
    sizes = {}
    for kind in ("exact", "pq"):
        make_vectors("faiss", kind, embeddings).save(tmp_path / kind)
        sizes[kind] = (tmp_path / kind).stat().st_size
    codebook = 256 * 64 * 4
    assert (sizes["pq"] - codebook) / sizes["exact"] == pytest.approx(1 / 16, rel=0.02)


def test_few_items_are_trained_on_without_warnings(capfd):
    for kind in ("ivf", "pq", "IVF4,PQ4np"):
        make_vectors("faiss", kind, torch.randn(300, 8))
    assert "WARNING" not in "".join(capfd.readouterr())
    assert len(make_vectors("faiss", "ivf", torch.randn(1, 8))) == 1


def test_errors(tmp_path):
    with pytest.raises(ValueError, match='the kind "pq" needs at least 256 items, got 255: use "exact"'):
        make_vectors("faiss", "pq", torch.randn(255, 8))
    with pytest.raises(ValueError, match=r'kind must be "exact", .* got "best". \(could not parse index string best\)'):
        make_vectors("faiss", "best", torch.randn(5, 8))
    (tmp_path / "index").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is not an index of faiss"):
        load_vectors("faiss", "exact", tmp_path / "index")


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_a_missing_engine_names_the_pip_line(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(ImportError, match=rf'pip install "lightning-recall\[{engine}\]"'):
        make_vectors(engine, "exact", torch.ones(2, 2))
