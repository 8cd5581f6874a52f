"""Subclasses of RankLoss: an objective, a comparison, and the options of the base class."""

import pytest
import torch
import torch.nn.functional as F

from lightning_recall.losses.rank_loss import RankLoss
from lightning_recall.losses.ranking import smooth_rank_loss
from lightning_recall.mixup import SimilarityMixup

LABELS = torch.tensor([3, 1, 1, 3, 3, 0, 1, 9, 3, 0, 3, 4, 4])


class MeanRankLoss(RankLoss):
    rank_temperature = 0.1
    ks = (1, 3)

    def objective(self, ranks, valid, similarities):
        return (ranks * valid).sum(1) / valid.sum(1) - 0.01 * (similarities * valid).sum(1)


class Step:
    """A comparison without gradient: counts the items that are more similar."""

    def __call__(self, similarities, positive_similarities, positives, buffer):
        above = torch.gt(similarities[:, None, :], positive_similarities[:, :, None], out=buffer)
        return above.sum(2), torch.zeros_like(buffer)


class ExactMeanRank(MeanRankLoss):
    def heaviside(self):
        return Step()


def unit(dtype=torch.float64):
    return F.normalize(torch.randn(13, 4, dtype=torch.float64), dim=1).to(dtype).requires_grad_()


@pytest.mark.parametrize("count_query", [False, True])
@pytest.mark.parametrize("queries", [None, slice(2, 9)])
@pytest.mark.parametrize("with_pairs", [False, True])
def test_a_subclass_equals_the_function(count_query, queries, with_pairs):
    loss, embeddings = MeanRankLoss(), unit()
    loss.count_query = count_query
    options = {"queries": queries, "pairs": SimilarityMixup().draw(LABELS) if with_pairs else None}
    value = loss(embeddings, LABELS, **options)
    expected = smooth_rank_loss(embeddings, LABELS, loss.objective, 0.1, count_query, **options)
    assert value == expected.loss
    assert loss.diagnostics == expected.diagnostics((1, 3))
    assert set(loss.diagnostics) == {"recall@1", "recall@3", "active_positives"}
    gradients = [torch.autograd.grad(one, embeddings)[0] for one in (value, expected.loss)]
    assert torch.equal(*gradients)


def test_a_subclass_may_use_another_comparison():
    embeddings = unit()
    value = ExactMeanRank()(embeddings.detach(), LABELS)
    s = (embeddings @ embeddings.T).detach()
    expected = []
    for q in range(13):
        positives = [x for x in range(13) if x != q and LABELS[x] == LABELS[q]]
        if positives:
            ranks = [1 + sum(bool(s[q, z] > s[q, x]) for z in range(13) if z != q) for x in positives]
            expected.append(sum(ranks) / len(ranks) - 0.01 * sum(s[q, x].item() for x in positives) / 0.1)
    assert value.item() == pytest.approx(sum(expected) / len(expected))


def test_a_plain_tuple_of_pairs_is_accepted_by_class_and_function():
    embeddings, loss = unit(), MeanRankLoss()
    pairs = tuple(SimilarityMixup().draw(LABELS))
    expected = loss(embeddings, LABELS, pairs=SimilarityMixup().draw(LABELS))
    assert loss(embeddings, LABELS, pairs=pairs) == expected
    assert smooth_rank_loss(embeddings, LABELS, loss.objective, 0.1, pairs=pairs).loss == expected


class MeanRank(RankLoss):
    rank_temperature = 0.05

    def objective(self, ranks, valid, similarities):  # the signature of the base class
        return (ranks * valid).sum(1) / valid.sum(1)


class ScalarMeanRank(MeanRank):
    def objective(self, ranks, valid, similarities):
        return super().objective(ranks, valid, similarities).mean()


class LearnedMeanRank(MeanRank):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_an_objective_that_averages_over_queries_is_rejected(requires_grad):
    embeddings = torch.nn.functional.normalize(torch.randn(12, 4), dim=1).requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=r"objective must return one value per query, shape \(12,\), got shape \(\)"):
        ScalarMeanRank()(embeddings, torch.arange(12) // 3)


def test_parameters_that_would_not_be_trained_are_rejected():
    embeddings = torch.nn.functional.normalize(torch.randn(12, 4), dim=1)
    with pytest.raises(ValueError, match=r"has parameters \(weight\), which a RankLoss does not train.*RetrievalLoss"):
        LearnedMeanRank()(embeddings, torch.arange(12) // 3)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_rank_temperature_of_a_subclass_is_checked(temperature):
    loss = MeanRank()
    loss.rank_temperature = temperature
    embeddings = torch.nn.functional.normalize(torch.randn(12, 4), dim=1)
    with pytest.raises(ValueError, match="rank_temperature must be"):
        loss(embeddings, torch.arange(12) // 3)
