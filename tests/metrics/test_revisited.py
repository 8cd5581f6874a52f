import numpy as np
import pytest
import torch

from lightning_recall.metrics import RevisitedMAP
from lightning_recall.metrics import revisited as module
from lightning_recall.metrics.revisited import GroundTruth


def by_hand(similarities, truth, protocol, ks):
    """The protocol for one query, with lists; None without a relevant image."""
    right = {"easy": truth.easy, "medium": [*truth.easy, *truth.hard], "hard": truth.hard}[protocol]
    junk = {"easy": [*truth.junk, *truth.hard], "medium": truth.junk, "hard": [*truth.junk, *truth.easy]}[protocol]
    if not len(right):
        return None
    ranking = [i for i in sorted(range(len(similarities)), key=lambda i: -similarities[i]) if i not in set(junk)]
    hits = [i in set(right) for i in ranking]
    area, recall, precision = 0.0, 0.0, 1.0
    for number in range(1, len(hits) + 1):
        next_precision, next_recall = sum(hits[:number]) / number, sum(hits[:number]) / len(right)
        area += (next_recall - recall) * (precision + next_precision) / 2
        recall, precision = next_recall, next_precision
    last = max(number for number, hit in enumerate(hits, 1) if hit)
    return [area] + [sum(hits[: min(last, k)]) / min(last, k) for k in ks]


def example(seed, queries=9, size=60):
    rng = np.random.default_rng(seed)
    embeddings = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(queries + size, 4))), dim=1).float()
    truths = []
    for query in range(queries):
        easy, hard, junk, _ = np.split(rng.permutation(size), np.cumsum(rng.integers(0, 9, 3) * (query > 0)))
        truths.append(GroundTruth(easy.tolist(), hard.tolist(), junk.tolist()))
    return embeddings, truths


def update(metric, embeddings, indices):
    metric.update(embeddings, torch.zeros_like(indices), indices)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_protocol_by_loops(seed):
    embeddings, truths = example(seed)
    metric = RevisitedMAP(truths, ks=(1, 5, 10))
    order = torch.randperm(len(embeddings))
    for part in order.split(20):
        update(metric, 3 * embeddings[part], part)  # lengths do not matter
    update(metric, embeddings[:5], torch.arange(5))  # nor do duplicates
    scores = metric.compute()
    similarities = embeddings[:9].numpy() @ embeddings[9:].numpy().T
    for protocol in ("easy", "medium", "hard"):
        rows = [by_hand(s, truth, protocol, (1, 5, 10)) for s, truth in zip(similarities, truths, strict=True)]
        expected = np.mean([row for row in rows if row is not None], 0)
        actual = [scores[f"{protocol}/{name}"].item() for name in ("map", "mp@1", "mp@5", "mp@10")]
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_perfect_and_the_worst_ranking():
    embeddings = torch.tensor([[1.0, 0], [1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]])
    for easy, expected in (([0, 1], 1.0), ([3], (0 + 1 / 4) / 2)):
        metric = RevisitedMAP([GroundTruth(easy, [], [])], ks=(1,))
        update(metric, embeddings, torch.arange(5))
        assert metric.compute()["easy/map"] == pytest.approx(expected)


def test_what_cannot_be_scored_is_refused():
    embeddings, truths = example(0)
    metric = RevisitedMAP(truths)
    with pytest.raises(ValueError, match=r"RevisitedMAP needs indices.*shuffle=False"):
        metric.update(embeddings, torch.zeros(69).long())
    update(metric, embeddings[1:], torch.arange(1, 69))
    with pytest.raises(ValueError, match="1 items are missing"):
        metric.compute()
    metric = RevisitedMAP([GroundTruth([], [], [3])])
    update(metric, embeddings, torch.arange(69))
    with pytest.raises(ValueError, match="No query has a relevant image"):
        metric.compute()


@pytest.mark.parametrize("whole", [False, True])
def test_a_gallery_in_pieces_is_not_concatenated(whole, monkeypatch):
    embeddings, truths = example(2)
    metric = RevisitedMAP(truths)
    for part in torch.arange(69).split(20):
        update(metric, embeddings[part].half(), part)
    if whole:
        update(metric, embeddings[:1].half(), torch.tensor([0]))
    else:
        monkeypatch.setattr(module, "dim_zero_cat", lambda parts: torch.cat(parts) if parts[0].ndim == 1 else 1 / 0)
    rounded = RevisitedMAP(truths)
    update(rounded, embeddings.half().double(), torch.arange(69))
    assert metric.compute() == rounded.compute()


def test_ties_count_against_the_query():
    metric = RevisitedMAP([GroundTruth([0], [1], [2])], ks=(1,))
    update(metric, torch.ones(6, 3), torch.arange(6))
    # 2 irrelevant images before the easy one: (0 + 1 / 3) / 2; the junk image does not count
    assert metric.compute()["easy/map"] == pytest.approx((0 + 1 / 3) / 2)
    assert metric.compute()["hard/mp@1"] == 0


def test_ignored_items_are_excluded():
    embeddings, truths = example(3)
    whole = RevisitedMAP(truths, ignore_index=-100)
    ignored = torch.zeros(69, dtype=torch.bool)
    ignored[[2, 9 + truths[4].easy[0], 9 + 7]] = True  # a query, a relevant image, and another image
    broken = embeddings.masked_fill(ignored[:, None], torch.nan)
    whole.update(broken, torch.where(ignored, -100, 3), torch.arange(69))
    kept = [i for i in range(60) if not ignored[9 + i]]
    fewer = [
        GroundTruth(*([kept.index(i) for i in part if i in kept] for part in truth))
        for query, truth in enumerate(truths)
        if query != 2
    ]
    rest = RevisitedMAP(fewer)
    update(rest, embeddings[~ignored], torch.arange(66))
    assert whole.compute() == rest.compute()
    assert whole.search().gallery.tolist() == [9 + i for i in kept]
    strict = RevisitedMAP(truths)
    with pytest.raises(ValueError, match="embeddings contain NaN"):
        update(strict, broken, torch.arange(69))
    update(strict, embeddings, torch.arange(69))
    strict.embeddings = [broken]  # as in a MetricCollection where a metric with an ignore_index updates both
    with pytest.raises(ValueError, match="embeddings contain NaN"):
        strict.compute()


def test_a_ground_truth_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="ground_truth must hold gallery indices, at least 0, got -1"):
        RevisitedMAP([GroundTruth([0], [-1], [])])  # -1 would be a query
    for truths, count, message in (
        ([GroundTruth([0], [7], [])], 5, "contains gallery index 7, but the gallery has 4 images"),
        ([GroundTruth([0], [], [])] * 3, 2, "ground_truth has 3 queries, but only 2 items were added"),
    ):
        metric = RevisitedMAP(truths)
        update(metric, torch.randn(count, 3), torch.arange(count))
        with pytest.raises(ValueError, match=message):
            metric.compute()
    with pytest.raises(ValueError, match="indices must be at least 0, got -2"):
        update(RevisitedMAP([GroundTruth([0], [], [])]), torch.randn(3, 3), torch.arange(3) - 2)
