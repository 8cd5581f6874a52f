"""Ranking losses, compared with loops over their equations."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_recall.losses import (
    RecallAtKLoss,
    SmoothAPLoss,
    SupAPLoss,
    SupRecallAtKLoss,
    heaviside,
    parts,
    query_blocks,
    ranking,
)

LABELS = torch.tensor([3, 1, 1, 3, 3, 0, 1, 9, 3, 0, 3, 4, 4])  # uneven, in any order; 9 is alone in its class
TAU, DELTA, SLOPE, START = 0.05, 0.2, 30.0, 0.5


def unit(n, d, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, dtype=dtype), dim=1)


def positives_of(q, labels):
    return [x for x in range(len(labels)) if x != q and labels[x] == labels[q]]


def smooth_ap_by_loops(embeddings, labels):
    s = embeddings @ embeddings.T
    precisions = []
    for q in range(len(labels)):
        right = positives_of(q, labels)
        for x in right:
            ahead = {z: torch.sigmoid((s[q, z] - s[q, x]) / TAU) for z in range(len(labels)) if z not in (q, x)}
            place = 1 + sum(ahead[z] for z in right if z != x)
            precisions.append(place / (1 + sum(ahead.values())) / len(right))
    return 1 - sum(precisions) / sum(bool(positives_of(q, labels)) for q in range(len(labels)))


def counted(t):
    if t <= 0:
        return torch.sigmoid(t / TAU)
    if t <= DELTA:
        return torch.sigmoid(t / TAU) + START
    return SLOPE * (t - DELTA) + 1 / (1 + math.exp(-DELTA / TAU)) + START


def sup_rank(s, q, x, labels):
    rank, place = 1.0, 1.0
    for z in range(len(labels)):
        if z in (q, x):
            continue
        if labels[z] == labels[q]:
            ahead = float(s[q, z] > s[q, x])
            rank, place = rank + ahead, place + ahead
        else:
            rank = rank + counted(s[q, z] - s[q, x])
    return rank, place


def sup_ap_by_loops(embeddings, labels):
    s = embeddings @ embeddings.T
    values = []
    for q in range(len(labels)):
        right = positives_of(q, labels)
        if right:
            ratios = [place / rank for rank, place in (sup_rank(s, q, x, labels) for x in right)]
            values.append(1 - sum(ratios) / len(right))
    return sum(values) / len(values)


def sup_recall_by_loops(embeddings, labels):
    s = embeddings @ embeddings.T
    values = []
    for q in range(len(labels)):
        right = positives_of(q, labels)
        for k in (1, 2, 4, 30) if right else ():
            hits = sum(torch.sigmoid(k - sup_rank(s, q, x, labels)[0]) for x in right)
            values.append(1 - hits / min(k, len(right)))
    return sum(values) / len(values)


CASES = {
    "SmoothAP": (SmoothAPLoss(TAU), smooth_ap_by_loops),
    "SupAP": (SupAPLoss(TAU, DELTA, SLOPE, START), sup_ap_by_loops),
    "SupRecall": (SupRecallAtKLoss((1, 2, 4, 30), 1.0, TAU, DELTA, SLOPE, START), sup_recall_by_loops),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize(("block", "part"), [(1, 1), (60, 70), (2**22, 2**20)])
@pytest.mark.parametrize(("stored", "spread"), [(1, 36.0), (16, 36.0), (2**22, -1.0)])
def test_value_and_gradient_equal_the_loops(case, block, part, stored, spread, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_QUERIES", 1)
    monkeypatch.setattr(parts, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(parts, "PART_ELEMENTS", part)
    monkeypatch.setattr(query_blocks, "STORED_ELEMENTS", stored)
    monkeypatch.setattr(heaviside, "MAX_SPREAD", spread)
    loss, by_loops = case
    embeddings = unit(len(LABELS), 3).requires_grad_()
    expected, actual = by_loops(embeddings, LABELS), loss(embeddings, LABELS)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (actual, expected)]
    assert gradients[1].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_an_objective_of_similarities_alone_has_a_gradient():
    """Queries with a gradient only through the similarities are not skipped."""

    def mean_similarity(ranks, valid, similarities):
        return -(similarities * valid).sum(1) + 0 * ranks.sum(1)

    embeddings = unit(len(LABELS), 3).requires_grad_()
    actual = ranking.smooth_rank_loss(embeddings, LABELS, mean_similarity, TAU).loss
    right = (LABELS[:, None] == LABELS) & ~torch.eye(len(LABELS), dtype=torch.bool)
    expected = -((embeddings @ embeddings.T)[right] / TAU).sum() / right.any(1).sum()
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (actual, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_gradcheck(case):
    loss, _ = case
    embeddings = unit(len(LABELS), 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: loss(e, LABELS), embeddings)


def test_order_does_not_matter_and_parts_add_up(case):
    loss, _ = case
    embeddings, order = unit(len(LABELS), 4).requires_grad_(), torch.randperm(len(LABELS))
    whole = loss(embeddings, LABELS)
    torch.testing.assert_close(loss(embeddings[order], LABELS[order]), whole, atol=1e-12, rtol=0)
    halves = [(slice(0, 6), 6), (torch.arange(6, 13), 6)]  # items, and number of valid queries among them
    parts = sum(loss(embeddings, LABELS, queries=rows) * count for rows, count in halves) / 12
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (parts, whole)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_virtual_items_equal_appended_ones(case):
    loss, _ = case
    embeddings = unit(len(LABELS), 4).requires_grad_()
    first, second, alpha = torch.tensor([0, 1, 5]), torch.tensor([3, 2, 9]), torch.tensor([0.3, 0.6, 0.9]).double()
    mixed = alpha[:, None] * embeddings[first] + (1 - alpha[:, None]) * embeddings[second]
    appended = loss(torch.cat([embeddings, mixed]), torch.cat([LABELS, LABELS[first]]))
    inside = loss(embeddings, LABELS, pairs=(first, second, alpha))
    torch.testing.assert_close(inside, appended, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (inside, appended)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)


@pytest.mark.filterwarnings("ignore:.* expects unit-norm embeddings")
def test_low_precision_is_computed_in_fp32(case):
    loss, _ = case
    embeddings = unit(len(LABELS), 4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(embeddings, LABELS) == loss(embeddings, LABELS)
    torch.testing.assert_close(loss(embeddings.bfloat16(), LABELS), loss(embeddings.bfloat16().float(), LABELS))
    for extreme in (torch.zeros(4, 2), 1e4 * torch.randn(4, 2)):
        extreme.requires_grad_()
        loss(extreme, torch.tensor([0, 0, 1, 1])).backward()
        assert torch.isfinite(extreme.grad).all()


def test_perfect_ranking_of_whole_classes_is_zero(case):
    loss, _ = case
    embeddings = torch.eye(3).repeat_interleave(4, 0)  # pytorch-metric-learning's SmoothAPLoss gives 0.25 here
    value = loss(embeddings, torch.arange(3).repeat_interleave(4))
    if isinstance(loss, SupRecallAtKLoss):
        # ranks are 1, 1 and 1 (ties among positives do not count): 3 sigmoid(k - 1) over min(k, 3)
        expected = 1 - sum(3 / (1 + math.exp(1 - k)) / min(k, 3) for k in (1, 2, 4, 30)) / 4
        assert value.item() == pytest.approx(expected, abs=1e-5)
    else:
        assert value.item() == pytest.approx(0, abs=1e-6)


def test_the_limit_is_the_exact_average_precision():
    from lightning_recall.metrics import RetrievalScores

    embeddings = unit(40, 3)
    labels = torch.arange(40) // 4
    metric = RetrievalScores(("map",))
    metric.update(embeddings, labels)
    expected = 1 - metric.compute()["map"].item()
    assert SmoothAPLoss(1e-6)(embeddings, labels).item() == pytest.approx(expected, abs=1e-6)
    bound = SupAPLoss(1e-6, delta=0.05, slope=1e-9, start=0.0, offset=1.0)(embeddings, labels).item()
    assert bound == pytest.approx(expected, abs=1e-6)


def test_badly_ranked_positives_keep_a_gradient():
    embeddings = torch.eye(3)[[0, 1, 2]] * 0.1  # similarities to the query are the first column
    embeddings[:, 0] = torch.tensor([1.0, 0.5, 0.65])  # the negative is 0.15 more similar than the positive
    labels = torch.tensor([0, 0, 1])

    def pull(loss):
        leaf = embeddings.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, labels, queries=slice(0, 1)), leaf)[0][1].norm()

    assert pull(SupRecallAtKLoss()) > 1e-2
    assert pull(SupAPLoss()) > 1e-2
    assert pull(RecallAtKLoss()) < 1e-4
    assert pull(SmoothAPLoss()) < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_temperature": 0.0}, "above 0"),
        ({"delta": -1.0}, "delta and slope must be above 0"),
        ({"slope": 0.0}, "delta and slope must be above 0"),
        ({"start": -0.1}, "start at least 0"),
    ],
)
def test_wrong_settings_are_rejected(settings, message):
    for loss in (SupAPLoss, SupRecallAtKLoss):
        with pytest.raises(ValueError, match=message):
            loss(**settings)


def test_wrong_temperatures_cut_offs_and_batches_are_rejected():
    with pytest.raises(ValueError, match="rank_temperature must be a finite number above 0, got 0"):
        SmoothAPLoss(0)
    with pytest.raises(ValueError, match="ks must be one or more positive integers"):
        SupRecallAtKLoss(ks=())
    for loss, _ in CASES.values():
        with pytest.raises(ValueError, match="No query has a positive"):
            loss(torch.randn(3, 2), torch.arange(3))


def test_diagnostics_are_the_hit_rate_of_the_batch(case):
    loss, _ = case
    embeddings = unit(len(LABELS), 3).requires_grad_()
    loss(embeddings, LABELS)
    s = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)
    hits = [bool(LABELS[s[q].argmax()] == LABELS[q]) for q in range(13) if positives_of(q, LABELS)]
    assert loss.diagnostics["recall@1"].item() == pytest.approx(sum(hits) / len(hits))
    assert 0 < loss.diagnostics["active_positives"] <= 1


class Denormals(TorchDispatchMode):
    """Counts denormal numbers in large results."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        computed = not any(name in str(func) for name in ("empty", "resize"))
        large = isinstance(result, torch.Tensor) and result.numel() >= 10_000
        if computed and large and result.dtype == torch.float32:
            self.count += int(((result != 0) & (result.abs() < torch.finfo(torch.float32).tiny)).sum())
        return result


@pytest.mark.parametrize("noise", [0.2, 0.3, 0.4, 0.5, 1.0])
def test_embeddings_of_trained_networks_cause_no_denormals(noise):
    """If a class is far from the others, sigmoids underflow, and denormals are slow on CPUs."""
    embeddings = F.normalize(torch.randn(100, 64).repeat_interleave(4, 0) + noise * torch.randn(400, 64), dim=1)
    embeddings.requires_grad_()
    with Denormals() as numbers:
        loss = RecallAtKLoss()(embeddings, torch.arange(400) // 4)
        torch.autograd.grad(loss, embeddings)
    assert numbers.count == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's memory from /proc")
def test_memory_does_not_grow_with_the_queries_of_a_large_class():
    script = """
import torch
from lightning_recall.benchmarks.measure import example_batch, forward_backward, peak_bytes
from lightning_recall.losses import SmoothAPLoss
embeddings, labels = example_batch(1200, 16, "clustered", torch.device("cpu"))
labels[:600] = 0
print(peak_bytes(lambda: forward_backward(SmoothAPLoss(), embeddings, labels), torch.device("cpu")) / 2**20)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 200  # 60; 1,600 if small results fragment the memory


def on_a_line(positive, other):
    """A query with exactly these similarities to its positive and to a negative."""
    s = torch.tensor([1.0, positive, other], dtype=torch.float64)
    embeddings = torch.stack([s, (1 - s * s).sqrt() * torch.tensor([0.0, 1, -1])], 1)
    return embeddings, torch.tensor([0, 0, 1])


def test_the_sup_heaviside_at_0_and_at_delta():
    """The loss is 1 - 1/rank: a negative adds sigmoid(0) at t = 0, and sigmoid(delta / tau) + start at t = delta."""
    loss = SupAPLoss(0.25, delta=0.25, slope=1.0, start=0.5, offset=7.0)
    tie = loss(*on_a_line(0.5, 0.5), queries=torch.tensor([0]))
    assert tie.item() == pytest.approx(1 - 1 / 1.5, abs=1e-12)
    at_delta = loss(*on_a_line(0.25, 0.5), queries=torch.tensor([0]))
    assert at_delta.item() == pytest.approx(1 - 1 / (1.5 + 1 / (1 + math.exp(-1))), abs=1e-12)
    beyond = loss(*on_a_line(0.25, 0.75), queries=torch.tensor([0]))
    assert beyond.item() == pytest.approx(1 - 1 / (1 + 7 + 0.25), abs=1e-12)
    joined = SupAPLoss(0.25, delta=0.25, slope=1.0, start=0.2)  # the linear part continues the sigmoid
    counted_ahead = 0.25 + 1 / (1 + math.exp(-1)) + 0.2
    assert joined(*on_a_line(0.25, 0.75), queries=torch.tensor([0])).item() == pytest.approx(
        1 - 1 / (1 + counted_ahead), abs=1e-12
    )
