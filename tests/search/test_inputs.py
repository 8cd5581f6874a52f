import numpy as np
import pytest
import torch

from lightning_recall.search import EmbeddingBlocks, expand_queries, k_reciprocal_similarities, nearest

EMBEDDINGS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("queries", "gallery", "message"),
    [
        (EMBEDDINGS.tolist(), EMBEDDINGS, "queries must be a tensor, got list"),
        (EMBEDDINGS, EMBEDDINGS.numpy(), "gallery must be a tensor, got ndarray"),
        (EMBEDDINGS.long(), EMBEDDINGS, "queries must be floating point"),
        (EMBEDDINGS, EMBEDDINGS[:, :2], r"the same D, got \(6, 3\) and \(6, 2\)"),
        (EMBEDDINGS[0], EMBEDDINGS, r"matrices \(N, D\) with the same D, got \(3,\)"),
        (EMBEDDINGS * torch.nan, EMBEDDINGS, "embeddings contain NaN"),
        (EMBEDDINGS, torch.cat([EMBEDDINGS, EMBEDDINGS[:1] / 0]), "embeddings contain NaN"),
    ],
)
def test_embeddings_that_searches_refuse(queries, gallery, message):
    with pytest.raises(ValueError, match=message):
        expand_queries(queries, gallery, 2)
    with pytest.raises(ValueError, match=message):
        k_reciprocal_similarities(queries, gallery, 3, 2)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (EMBEDDINGS.tolist(), r"tensors or arrays \(N, D\), got list"),
        (EMBEDDINGS.long(), "embeddings must be floating point, got torch.int64"),
        (EMBEDDINGS.long().numpy(), "embeddings must be floating point, got int64"),
        (EMBEDDINGS.cfloat().numpy(), "embeddings must be floating point, got complex64"),
    ],
)
def test_what_embedding_blocks_refuse(embeddings, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingBlocks(embeddings)


def test_what_nearest_refuses():
    blocks = EmbeddingBlocks(EMBEDDINGS)
    message = r"must be EmbeddingBlocks, got \w+: wrap them, nearest\(EmbeddingBlocks\(queries\), EmbeddingBlocks\(gal"
    for wrong in (EMBEDDINGS, EMBEDDINGS.numpy()):
        with pytest.raises(ValueError, match=message):
            nearest(wrong, blocks, 2)
        with pytest.raises(ValueError, match=message):
            nearest(blocks, wrong, 2)
    with pytest.raises(ValueError, match="queries have dimension 3, but the gallery has dimension 2"):
        nearest(blocks, EmbeddingBlocks(EMBEDDINGS[:, :2]), 2)
    for wrong in (2.0, True, "2"):
        with pytest.raises(ValueError, match="k must be an integer, at least 1"):
            nearest(blocks, blocks, wrong)
    assert [part.shape for part in nearest(EmbeddingBlocks(EMBEDDINGS[:0]), blocks, np.int64(2))] == [(0, 2), (0, 2)]


def test_no_queries_give_empty_results():
    assert expand_queries(EMBEDDINGS[:0], EMBEDDINGS, 2).shape == (0, 3)
    assert k_reciprocal_similarities(EMBEDDINGS[:0], EMBEDDINGS, 3, 2).shape == (0, 6)
