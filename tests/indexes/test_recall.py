import pytest
import torch

from lightning_recall.indexes import measure_recall
from lightning_recall.indexes.recall import without_self
from lightning_recall.indexes.vector_index import make_vectors


class Given:
    """An index that answers with given rows for each item."""

    def __init__(self, rows, embeddings):
        self.rows, self.embeddings = rows, torch.nn.functional.normalize(embeddings.double(), dim=1)

    def search(self, queries, k):
        numbers = (queries @ self.embeddings.T).argmax(1)
        return torch.zeros(len(queries), k), self.rows[numbers][:, :k]


def on_circle(degrees):
    angles = torch.tensor(degrees).double().deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_case_by_hand():
    """Neighbours of 0, 10, 30, 60 degrees without the query: [1, 2], [0, 2], [1, 3 or 0: both 30 away], [2, 1]."""
    embeddings = on_circle([0.0, 10.0, 30.0, 60.0])
    rows = torch.tensor(
        [
            [1, 3, 2],  # misses itself, and 2: the third does not count
            [1, 2, -1],  # finds one only
            [2, 0, 1],  # 0 is as near as 3
            [3, 2, 1],
        ]
    )
    measured = measure_recall(Given(rows, embeddings), embeddings, k=2)
    assert measured == (pytest.approx((0.5 + 0.5 + 1 + 1) / 4), 2, 4, 4)


def test_copies_are_interchangeable():
    pytest.importorskip("faiss")  # an extra
    embeddings = torch.randn(20, 4).repeat_interleave(10, 0)
    assert measure_recall(make_vectors("faiss", "exact", embeddings), embeddings, k=5).recall == 1


def test_agrees_with_sets():
    pytest.importorskip("faiss")  # an extra
    embeddings = torch.randn(300, 8)
    vectors = make_vectors("faiss", "PQ2np", embeddings)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    similarities = (unit @ unit.T).fill_diagonal_(-2)
    _, found = vectors.search(embeddings, 6)
    hits = []
    for query in range(300):
        others = [row for row in found[query].tolist() if row != query][:5]
        hits.append(len(set(others) & set(similarities[query].topk(5).indices.tolist())) / 5)
    measured = measure_recall(vectors, embeddings, k=5)
    assert measured.recall == pytest.approx(sum(hits) / 300, abs=1e-9)
    assert 0.1 < measured.recall < 0.9
    sampled = measure_recall(vectors, embeddings, k=5, num_queries=200)
    assert sampled.num_queries == 200
    assert sampled.recall == pytest.approx(measured.recall, abs=0.1)


def test_small_sets():
    one = torch.randn(1, 4)
    assert measure_recall(Given(torch.tensor([[0]]), one), one) is None
    two = torch.randn(2, 4)
    measured = measure_recall(Given(torch.tensor([[0, 1], [1, 0]]), two), two, k=10)
    assert measured == (1.0, 1, 2, 2)


def test_without_self():
    rows = torch.tensor([[5, 1, 2], [1, 5, 2], [1, 2, 5], [1, 2, 3]])
    columns = without_self(rows, torch.full((4,), 5), 2)
    assert rows.gather(1, columns).tolist() == [[1, 2], [1, 2], [1, 2], [1, 2]]
