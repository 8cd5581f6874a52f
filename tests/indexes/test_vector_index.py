import numpy as np
import pytest
import torch

from lightning_recall.indexes.vector_index import BLOCK_SIZE, choose_kind, load_vectors, make_vectors

pytest.importorskip("faiss")  # an extra
pytest.importorskip("usearch")  # an extra

ENGINES = ("faiss", "usearch")
EXACT = [(engine, "exact") for engine in ENGINES]
APPROXIMATE = [("faiss", "hnsw"), ("faiss", "ivf"), ("faiss", "pq"), ("faiss", "IVF4,SQ8"), ("usearch", "hnsw")]


@pytest.fixture(scope="module")
def embeddings():
    return 5 * torch.randn(400, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def queries():
    return 0.1 * torch.randn(30, 16, generator=torch.Generator().manual_seed(2))


def by_loops(queries, embeddings, k):
    """Similarities and rows (Q, k), by NumPy in float64."""
    arrays = (queries.double().numpy(), embeddings.double().numpy())
    unit_queries, unit_items = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in arrays)
    similarities = np.array([[query @ item for item in unit_items] for query in unit_queries])
    rows = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, rows, 1), rows


@pytest.mark.parametrize(("engine", "kind"), EXACT)
def test_exact_kinds_find_the_nearest_items(engine, kind, embeddings, queries, tmp_path):
    expected = by_loops(queries, embeddings, 7)
    index = make_vectors(engine, kind, embeddings)
    index.save(tmp_path / "index")
    in_two_parts = make_vectors(engine, kind, embeddings[:150])
    in_two_parts.add(embeddings[150:])
    for found in (index, load_vectors(engine, kind, tmp_path / "index"), in_two_parts):
        assert len(found) == 400
        similarities, rows = found.search(queries, 7)
        assert rows.dtype == torch.int64
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_allclose(similarities, expected[0], atol=1e-6)


@pytest.mark.parametrize(("engine", "kind"), APPROXIMATE)
def test_approximate_kinds_find_most_of_them(engine, kind, embeddings, queries, tmp_path):
    similarities, rows = by_loops(queries, embeddings, 10)
    index = make_vectors(engine, kind, embeddings)
    found_similarities, found = index.search(queries, 10)
    hits = [len(set(a) & set(b.tolist())) for a, b in zip(rows, found, strict=True)]
    assert sum(hits) > 0.6 * rows.size
    np.testing.assert_allclose(found_similarities[:, 0], similarities[:, 0], atol=0.2)
    assert (found_similarities.diff(dim=1) <= 0).all()
    index.save(tmp_path / "index")
    loaded = load_vectors(engine, kind, tmp_path / "index").search(queries, 10)
    assert torch.equal(loaded[0], found_similarities)
    assert torch.equal(loaded[1], found)


@pytest.mark.parametrize(("engine", "kind"), [*EXACT, ("usearch", "hnsw")])
def test_one_query_and_no_query_keep_their_shape(engine, kind, embeddings, queries):
    index = make_vectors(engine, kind, embeddings)
    for number in (0, 1):
        similarities, rows = index.search(queries[:number], 3)
        assert similarities.shape == rows.shape == (number, 3)


def test_half_precision_and_blocks(embeddings, monkeypatch):
    monkeypatch.setattr("lightning_recall.indexes.vector_index.BLOCK_SIZE", 64)
    _, rows = make_vectors("faiss", "exact", embeddings.half()).search(embeddings.half(), 1)
    assert rows[:, 0].tolist() == list(range(400))
    assert BLOCK_SIZE > 64


def test_items_that_are_not_found_have_no_row(embeddings, queries):
    index = make_vectors("faiss", "IVF20,Flat", embeddings)
    index.index.nprobe = 1
    similarities, rows = index.search(queries, 100)
    assert (rows[:, -1] == -1).all()
    assert (similarities[rows == -1] == -torch.inf).all()
    assert (similarities[rows >= 0] >= -1).all()


def test_auto_depends_on_the_number_of_items():
    assert [choose_kind("auto", number) for number in (1, 99_999, 100_000)] == ["exact", "exact", "hnsw"]
    assert choose_kind("pq", 5) == "pq"


def test_errors(embeddings, queries, tmp_path):
    index = make_vectors("faiss", "auto", embeddings)
    with pytest.raises(ValueError, match="k must be at most 400, the number of items in the index, got 401"):
        index.search(queries, 401)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(queries, 0)
    with pytest.raises(ValueError, match="queries have dimension 15, but those of the index have dimension 16"):
        index.search(queries[:, 1:], 1)
    with pytest.raises(ValueError, match="embeddings have dimension 15"):
        index.add(embeddings[:, 1:])
    with pytest.raises(ValueError, match="contain NaN"):
        index.search(queries / 0 * 0, 1)
    with pytest.raises(ValueError, match='engine must be "faiss" or "usearch", got \'annoy\''):
        make_vectors("annoy", "exact", embeddings)
    with pytest.raises(ValueError, match="engine must be"):
        load_vectors("annoy", "exact", tmp_path)
