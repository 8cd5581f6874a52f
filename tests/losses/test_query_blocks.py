"""Gradient of the embeddings from blocks of the gradient of the similarities, compared with (W + W^T) E."""

import pytest
import torch

from lightning_recall.losses import query_blocks
from lightning_recall.losses.query_blocks import make_query_blocks


@pytest.mark.parametrize("stored", [1, 9, 2**22])  # groups of one block, of two, of all
@pytest.mark.parametrize("with_gradient", [1.0, 0.3])  # fraction of the queries
@pytest.mark.parametrize("queries", [torch.tensor([4, 0, 7, 2, 9, 5, 1]), torch.arange(10)])
def test_gradient_equals_the_two_products(stored, with_gradient, queries, monkeypatch):
    monkeypatch.setattr(query_blocks, "STORED_ELEMENTS", stored)
    embeddings = torch.randn(10, 3, dtype=torch.float64)
    similarity_gradient = torch.randn(10, 10, dtype=torch.float64) * (torch.rand(10, 1) < with_gradient)
    is_query = torch.zeros(10, 1, dtype=torch.bool).index_fill_(0, queries, True)
    similarity_gradient *= is_query
    blocks = make_query_blocks(embeddings, None, queries, block_size=3)
    for start in range(0, len(queries), 3):
        block = slice(start, min(start + 3, len(queries)))
        similarities = blocks.similarities(start, block.stop, 2.0, torch.empty(0, dtype=torch.float64))
        expected = 2 * embeddings[queries[block]] @ embeddings.T
        torch.testing.assert_close(similarities[:, blocks.columns], expected, rtol=0, atol=1e-14)
        rows = torch.empty_like(similarities)
        rows[:, blocks.columns] = similarity_gradient[queries[block]]
        active = rows.any(1).nonzero().squeeze(1)
        blocks.accumulate_gradient(start, block.stop, rows, active)
    expected = (similarity_gradient + similarity_gradient.T) @ embeddings
    torch.testing.assert_close(blocks.embedding_gradient(), expected, rtol=0, atol=1e-13)
