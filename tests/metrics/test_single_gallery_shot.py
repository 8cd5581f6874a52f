from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_recall.metrics import RecallAtK, SingleGalleryShotCMC, single_gallery_shot


def small_gallery(seed, size=20, num_identities=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_identities, (size,), generator=generator)
    embeddings = torch.randn(num_identities, 3, generator=generator)[labels] + torch.randn(size, 3, generator=generator)
    return embeddings, labels, torch.arange(size) < 8, torch.randint(0, 2, (size,), generator=generator)


def cmc_of_all_draws(embeddings, labels, is_query, cameras, ks):
    """CMC@k, averaged over every draw of one gallery image per identity, of each query."""
    unit, gallery = F.normalize(embeddings.double(), dim=1), (~is_query).nonzero().flatten().tolist()
    means = []
    for q in is_query.nonzero().flatten().tolist():
        kept = [g for g in gallery if labels[g] != labels[q] or cameras[g] != cameras[q]]
        identities = {int(labels[g]) for g in kept}
        if int(labels[q]) not in identities:
            continue
        images = [[g for g in kept if labels[g] == identity] for identity in sorted(identities)]
        position, ranks = sorted(identities).index(int(labels[q])), []
        for draw in product(*images):
            similarities = [float((unit[q] @ unit[g]).float()) for g in draw]
            others = [value for i, value in enumerate(similarities) if i != position]
            ranks.append(1 + sum(value >= similarities[position] for value in others))
        means.append([np.mean(np.array(ranks) <= k) for k in ks])
    return np.mean(means, axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_is_the_mean_over_all_draws(seed, monkeypatch):
    monkeypatch.setattr(single_gallery_shot, "QUERIES_PER_BLOCK", 3)
    monkeypatch.setattr(single_gallery_shot, "POSITIVES_PER_BLOCK", 2)
    embeddings, labels, is_query, cameras = small_gallery(seed)
    if seed == 3:  # ties count against the query
        embeddings = embeddings.sign()
    metric = SingleGalleryShotCMC((1, 2, 4, 9))
    metric.update(embeddings, labels, None, is_query, ~is_query, cameras)
    expected = cmc_of_all_draws(embeddings, labels, is_query, cameras, (1, 2, 4, 9))
    found = [value.item() for value in metric.compute().values()]
    assert found == pytest.approx(expected, abs=1e-7)
    assert expected[0] < expected[1] <= expected[3] == 1


def test_one_image_per_identity_is_recall_at_k():
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(60, 4, generator=generator), torch.arange(30).repeat(2)
    is_query = torch.arange(60) < 30
    single, recall = SingleGalleryShotCMC((1, 5)), RecallAtK((1, 5))
    for metric in (single, recall):
        metric.update(embeddings, labels, None, is_query, ~is_query)
    assert [*single.compute().values()] == [pytest.approx(value.item()) for value in recall.compute().values()]


def test_no_query_is_refused():
    metric = SingleGalleryShotCMC()
    metric.update(torch.rand(4, 3), torch.arange(4))
    with pytest.raises(ValueError, match="None of the 4 items has a gallery image of its identity"):
        metric.compute()
    with pytest.raises(ValueError, match="ks must contain"):
        SingleGalleryShotCMC(ks=0)
