import pytest
import torch
import torch.nn.functional as F

from lightning_recall.metrics import RetrievalScores
from lightning_recall.search import expand_queries


@pytest.mark.parametrize("k", [4, 40])  # all 40 include items with negative similarity
def test_equals_the_definition_by_loops(k):
    queries, gallery = torch.randn(600, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    found = expand_queries(queries, gallery, k=k, alpha=2.5)
    assert found.dtype == torch.float64
    unit_gallery = gallery / gallery.norm(dim=1, keepdim=True)
    for query, row in zip(queries, found, strict=True):
        query = query / query.norm()
        total = query.clone()
        for z in sorted(unit_gallery, key=lambda z: -float(z @ query))[:k]:
            total += max(float(z @ query), 0) ** 2.5 * z
        torch.testing.assert_close(row, total / total.norm(), atol=1e-6, rtol=0)


def test_expansion_is_scored_leave_one_out_and_improves_map():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) // 10
    centres = torch.randn(30, 16, generator=generator)
    embeddings = F.normalize(centres[labels] + 1.2 * torch.randn(300, 16, generator=generator), dim=1)
    plain = RetrievalScores(("map",))
    plain.update(embeddings, labels)
    metric = RetrievalScores(("map",))
    yes, no, item = torch.ones(300).bool(), torch.zeros(300).bool(), torch.arange(300)
    metric.update(embeddings, labels, is_query=no, is_gallery=yes, groups=item)
    metric.update(embeddings, labels, is_query=yes, is_gallery=no, groups=item)
    assert metric.compute() == plain.compute()  # no query retrieves itself
    metric.reset()
    metric.update(embeddings, labels, is_query=no, is_gallery=yes, groups=item)
    metric.update(expand_queries(embeddings, embeddings, 6), labels, is_query=yes, is_gallery=no, groups=item)
    assert metric.compute()["map"] > plain.compute()["map"] + 0.02


@pytest.mark.parametrize(("settings", "message"), [({"k": 0}, "k must be"), ({"alpha": -1}, "alpha must be at")])
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        expand_queries(torch.ones(2, 2), torch.ones(3, 2), **{"k": 1, **settings})
