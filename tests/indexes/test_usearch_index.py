import pytest
import torch

from lightning_recall.indexes.vector_index import load_vectors, make_vectors

pytest.importorskip("usearch")  # an extra


def test_embeddings_are_kept_in_float32(tmp_path):
    embeddings = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    make_vectors("usearch", "hnsw", embeddings).save(tmp_path / "index")
    loaded = load_vectors("usearch", "hnsw", tmp_path / "index")
    assert loaded.index.expansion_search == 128
    saved = torch.stack([torch.from_numpy(loaded.index[row]) for row in range(50)])
    torch.testing.assert_close(saved, embeddings, atol=1e-6, rtol=0)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match='kind must be "exact" or "hnsw" with usearch, got "ivf"'):
        make_vectors("usearch", "ivf", torch.randn(5, 8))
    (tmp_path / "index").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is not an index of usearch"):
        load_vectors("usearch", "exact", tmp_path / "index")
