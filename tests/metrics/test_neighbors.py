import numpy as np
import pytest
import torch

from lightning_recall.metrics import nearest, search
from lightning_recall.metrics.shards import Shards


@pytest.mark.parametrize("rows", [3, 7, 4096])
def test_equals_whole_rankings_and_faiss(rows, monkeypatch):
    faiss = pytest.importorskip("faiss")  # an extra
    monkeypatch.setattr(search, "QUERY_ROWS", rows)
    monkeypatch.setattr(search, "GALLERY_ROWS", rows)
    queries, gallery = torch.randn(20, 8), torch.randn(50, 8)
    values, items = nearest(Shards(queries), Shards([gallery[:11], gallery[11:].numpy()]), 6)
    unit = [(part / part.norm(dim=1, keepdim=True)).numpy() for part in (queries, gallery)]
    index = faiss.IndexFlatIP(8)
    index.add(unit[1])
    expected_values, expected = index.search(unit[0], 6)
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_allclose(values, expected_values, atol=1e-6)


@pytest.mark.parametrize("k", [0, 51])
def test_wrong_numbers_are_refused(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to the 50 items of the gallery, got {k}"):
        nearest(Shards(torch.ones(1, 2)), Shards(torch.ones(50, 2)), k)
