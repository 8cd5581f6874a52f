import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_recall.metrics import score_similarities
from lightning_recall.search import k_reciprocal_similarities


def by_sets(queries, gallery, k1, k2, lambda_value):
    """The paper's section 3 with Python sets."""
    rows = np.concatenate([queries, gallery])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = np.maximum(2 - 2 * rows @ rows.T, 0)
    distances = distances / distances.max(1, keepdims=True)
    order = np.argsort(-(rows @ rows.T), axis=1)

    def mutual(p, k):
        return {g for g in order[p, : k + 1] if p in order[g, : k + 1]}

    encodings = np.zeros_like(distances)
    for p in range(len(rows)):
        near = mutual(p, k1)
        whole = set(near)
        for q in near:
            half = mutual(q, round(k1 / 2))
            if len(half & near) > 2 / 3 * len(half):
                whole |= half
        for g in whole:
            encodings[p, g] = np.exp(-distances[p, g])
        encodings[p] /= encodings[p].sum()
    encodings = np.stack([encodings[order[p, :k2]].mean(0) for p in range(len(rows))])
    n = len(queries)
    result = np.zeros((n, len(gallery)))
    for p in range(n):
        for g in range(len(gallery)):
            jaccard = (
                1 - np.minimum(encodings[p], encodings[n + g]).sum() / np.maximum(encodings[p], encodings[n + g]).sum()
            )
            result[p, g] = -((1 - lambda_value) * jaccard + lambda_value * distances[p, n + g])
    return result


@pytest.mark.parametrize(("k1", "k2"), [(8, 3), (5, 1), (20, 6)])
def test_equals_the_paper_by_sets(k1, k2):
    rng = np.random.default_rng(k1)
    centres = rng.normal(size=(5, 4))
    queries, gallery = (centres[rng.integers(5, size=n)] + 0.4 * rng.normal(size=(n, 4)) for n in (9, 31))
    found = k_reciprocal_similarities(torch.from_numpy(queries), torch.from_numpy(gallery), k1, k2, 0.3)
    np.testing.assert_allclose(found, by_sets(queries, gallery, k1, k2, 0.3), atol=2e-5)


def test_reranking_improves_map():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) // 10
    centres = torch.randn(30, 16, generator=generator)
    embeddings = F.normalize(centres[labels] + 1.2 * torch.randn(300, 16, generator=generator), dim=1)
    queries, gallery = embeddings[::5], embeddings[torch.arange(300) % 5 > 0]
    own, others = labels[::5], labels[torch.arange(300) % 5 > 0]
    plain = score_similarities(queries @ gallery.T, own, others)
    again = score_similarities(k_reciprocal_similarities(queries, gallery, 10, 3), own, others)
    assert again["map"] > plain["map"] + 0.02


def test_settings_out_of_range_are_refused():
    rows = torch.randn(8, 3)
    for settings in ({"k1": 16}, {"k2": 0}, {"k1": 3, "k2": 4}, {"lambda_value": 1.1}):
        with pytest.raises(ValueError, match="needs 1 <= k2 <= k1 < 16, the number of items"):
            k_reciprocal_similarities(rows, rows, **{"k1": 5, "k2": 2, **settings})


def test_autocast_does_not_change_the_distances():
    queries, gallery = torch.randn(8, 32), torch.randn(40, 32)
    expected = k_reciprocal_similarities(queries, gallery, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = k_reciprocal_similarities(queries, gallery, 6, 3)
    assert torch.equal(found, expected)
    in_bf16 = k_reciprocal_similarities(queries.bfloat16(), gallery.bfloat16(), 6, 3)
    assert (in_bf16 - expected).abs().max() > 1e-4  # the rounding of the inputs
