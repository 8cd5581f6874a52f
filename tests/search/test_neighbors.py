import numpy as np
import pytest
import torch

from lightning_recall.search import EmbeddingBlocks, nearest, ranks


@pytest.mark.parametrize("size", [3, 7, 4096])
def test_equals_whole_rankings_and_faiss(size, monkeypatch):
    faiss = pytest.importorskip("faiss")  # an extra
    monkeypatch.setattr(ranks, "QUERIES_PER_BLOCK", size)
    monkeypatch.setattr(ranks, "ITEMS_PER_BLOCK", size)
    queries, gallery = torch.randn(20, 8), torch.randn(50, 8)
    values, items = nearest(EmbeddingBlocks(queries), EmbeddingBlocks([gallery[:11], gallery[11:].numpy()]), 6)
    unit = [(part / part.norm(dim=1, keepdim=True)).numpy() for part in (queries, gallery)]
    index = faiss.IndexFlatIP(8)
    index.add(unit[1])
    expected_values, expected = index.search(unit[0], 6)
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_allclose(values, expected_values, atol=1e-6)


@pytest.mark.parametrize(
    ("k", "message"),
    [(0, "k must be at least 1, got 0"), (51, "k must be at most 50, the size .*, got 51")],
)
def test_k_out_of_range_is_refused(k, message):
    with pytest.raises(ValueError, match=message):
        nearest(EmbeddingBlocks(torch.ones(1, 2)), EmbeddingBlocks(torch.ones(50, 2)), k)


def test_neighbors_are_those_of_fp32_under_autocast_and_have_no_gradient():
    queries, gallery = torch.randn(9, 64, requires_grad=True), torch.randn(30, 64)
    unit = [torch.nn.functional.normalize(part.detach().double(), dim=1) for part in (queries, gallery)]
    expected = (unit[0] @ unit[1].T).topk(4)
    with torch.autocast("cpu", torch.bfloat16):
        values, items = nearest(EmbeddingBlocks(queries), EmbeddingBlocks(gallery), 4)
    assert not values.requires_grad
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected.values, atol=1e-6, rtol=0)
    assert torch.equal(items, expected.indices)
