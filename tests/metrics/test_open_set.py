import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from lightning_recall.metrics import OpenSetScores, RecallAtK
from lightning_recall.metrics.open_set import Predictions, global_average_precision, identification_rate
from lightning_recall.search import pair_similarities


def open_set(seed=0, size=150, known=12, unknown=30):
    """Embeddings, labels, is_query and cameras; about `unknown` queries have no image of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, known, (size,), generator=generator)
    is_query = torch.rand(size, generator=generator) < 0.5
    alone = is_query.nonzero().flatten()[:unknown]
    labels[alone] = known + torch.arange(len(alone))
    embeddings = torch.randn(2 * size, 6, generator=generator)[labels] + 0.8 * torch.randn(size, 6, generator=generator)
    return embeddings, labels, is_query, torch.randint(0, 2, (size,), generator=generator)


def predictions_by_loop(embeddings, labels, is_query, is_gallery, cameras):
    unit = F.normalize(embeddings.double(), dim=1)
    found = []
    for q in is_query.nonzero().flatten().tolist():
        same = {g for g in is_gallery.nonzero().flatten().tolist() if labels[g] == labels[q]}
        ignored = {g for g in same if g == q or cameras[g] == cameras[q]}
        others = [g for g in is_gallery.nonzero().flatten().tolist() if g not in ignored]
        similarities = [float((unit[q] @ unit[g]).float()) for g in others]
        best = int(np.argmax(similarities))
        found.append((similarities[best], others[best] in same, bool(same - ignored)))
    return tuple(map(np.array, zip(*found, strict=True)))


@pytest.fixture(params=[4096, 16])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(pair_similarities, "block_shape", lambda _: (request.param, request.param))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_equals_loops_over_queries(leave_one_out):
    embeddings, labels, is_query, cameras = open_set()
    everything = torch.ones_like(is_query)
    is_query, is_gallery = (everything, everything) if leave_one_out else (is_query, ~is_query)
    metric = OpenSetScores(threshold=0.6, false_alarm_rates=(0.3, 0.1, 1e-3))
    for part in torch.arange(150).split(64):
        metric.update(embeddings[part], labels[part], part, is_query[part], is_gallery[part], cameras[part])
    confidence, correct, known = predictions_by_loop(embeddings, labels, is_query, is_gallery, cameras)
    predictions = metric.predictions()
    assert np.array_equal(predictions.confidence.numpy(), confidence.astype(np.float32))
    assert np.array_equal(predictions.is_correct.numpy(), correct)
    assert np.array_equal(predictions.is_known.numpy(), known)
    assert 10 < (~known).sum() < len(known) - 10
    precision = [correct[confidence >= value].mean() for value in confidence]  # two nearest neighbours are tied
    gap = (precision * correct).sum() / known.sum()
    scores = {name: value.item() for name, value in metric.compute().items()}
    assert scores["gap"] == pytest.approx(gap, abs=1e-7)
    for rate in (0.3, 0.1):
        allowed = [t for t in [*confidence, 2.0] if (confidence[~known] >= t).mean() <= rate]
        expected = max((correct & (confidence >= t))[known].mean() for t in allowed)
        assert scores[f"dir@far={rate}"] == pytest.approx(expected, abs=1e-7)
    assert math.isnan(scores["dir@far=0.001"])
    accepted = confidence >= 0.6
    known_accuracy, unknown_accuracy = (accepted & correct)[known].mean(), (~accepted)[~known].mean()
    assert scores["known_accuracy"] == pytest.approx(known_accuracy)
    assert scores["unknown_accuracy"] == pytest.approx(unknown_accuracy)
    assert scores["open_set_accuracy"] == pytest.approx((known_accuracy + unknown_accuracy) / 2)


def test_average_precision_is_scikit_learns_also_with_ties():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.randint(0, 9, (80,), generator=generator) / 9
    is_known = torch.rand(80, generator=generator) < 0.7
    is_correct = is_known & (torch.rand(80, generator=generator) < 0.6)
    expected = average_precision_score(is_correct, confidence) * is_correct.sum().item() / is_known.sum().item()
    found = global_average_precision(Predictions(confidence, is_correct, is_known))
    assert found == pytest.approx(expected, abs=1e-12)


def test_unknown_queries_that_tie_are_rejected_together():
    predictions = Predictions(
        torch.tensor([0.9, 0.5, 0.5, 0.5, 0.1]),
        torch.tensor([True, True, False, False, False]),
        torch.tensor([True, True, False, False, False]),
    )
    rate, threshold = identification_rate(predictions, 0.4)  # one of three, but two are tied
    assert rate == 0.5
    assert 0.5 < threshold < 0.5 + 1e-6
    assert identification_rate(predictions, 0.7)[0] == 1


def test_without_unknown_queries_gap_is_defined():
    metric = OpenSetScores(threshold=0.5)
    embeddings, labels = torch.randn(40, 4), torch.arange(40) // 4
    metric.update(embeddings, labels)
    scores = metric.compute()
    assert 0 < scores["gap"] <= 1
    assert scores["dir@far=0.1"].isnan()
    assert scores["unknown_accuracy"].isnan()
    first = RecallAtK(1)
    first.update(embeddings, labels)
    assert metric.predictions().is_correct.float().mean() == pytest.approx(first.compute().item())


def test_a_collapsed_network_identifies_nothing():
    metric = OpenSetScores()
    metric.update(torch.ones(40, 7), torch.arange(40) // 4)
    assert metric.compute()["gap"] == 0


def test_no_known_query_is_refused():
    metric = OpenSetScores()
    metric.update(torch.rand(4, 3), torch.arange(4))
    with pytest.raises(ValueError, match="None of the 4 queries has another image of its class in the gallery"):
        metric.compute()
    with pytest.raises(ValueError, match="a false accept rate must be a number"):
        OpenSetScores(false_alarm_rates=[1.5])
