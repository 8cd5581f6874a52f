import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lightning_recall.losses import CircleLoss, ContrastiveLoss, UniLoss, pairwise
from lightning_recall.losses.pairwise import PairwiseLoss, pairwise_loss
from lightning_recall.mixup import SimilarityMixup

LABELS = torch.tensor([3, 1, 1, 3, 3, 0, 1, 9, 3, 0, 3, 4, 4])
LOSSES = [CircleLoss(0.3, 8), ContrastiveLoss(0.8, 0.1)]


def unit(n, d):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_add_up_and_order_does_not_matter(loss):
    embeddings, order = unit(13, 4).requires_grad_(), torch.randperm(13)
    whole = loss(embeddings, LABELS)
    torch.testing.assert_close(loss(embeddings[order], LABELS[order]), whole, atol=1e-12, rtol=0)
    parts = [(slice(0, 6), 6), (torch.arange(6, 13), 6)]
    total = sum(loss(embeddings, LABELS, queries=rows) * count for rows, count in parts) / 12
    torch.testing.assert_close(total, whole, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (total, whole)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_virtual_items_equal_appended_ones(loss):
    embeddings = unit(13, 4).requires_grad_()
    first, second, alpha = torch.tensor([0, 1, 5]), torch.tensor([3, 2, 9]), torch.tensor([0.3, 0.6, 0.9]).double()
    mixed = alpha[:, None] * embeddings[first] + (1 - alpha[:, None]) * embeddings[second]
    appended = loss(torch.cat([embeddings, mixed]), torch.cat([LABELS, LABELS[first]]))
    inside = loss(embeddings, LABELS, pairs=(first, second, alpha))
    torch.testing.assert_close(inside, appended, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (inside, appended)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_hit_rate_is_exact(loss):
    embeddings = unit(13, 3)
    loss(embeddings, LABELS)
    s = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)
    valid_queries = [q for q in range(13) if LABELS[q] != 9]
    hits = [bool(LABELS[s[q].argmax()] == LABELS[q]) for q in valid_queries]
    assert loss.diagnostics["recall@1"].item() == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_tie_with_a_negative_is_not_a_hit(loss):
    loss(
        torch.eye(2).repeat_interleave(2, 0), torch.tensor([0, 1, 0, 1])
    )  # the positive and two negatives at similarity 0
    assert loss.diagnostics["recall@1"].item() == 0
    loss(torch.ones(4, 2) / 2**0.5, torch.tensor([0, 1, 0, 1]))
    assert loss.diagnostics["recall@1"].item() == 0


class DifferenceOfMeans(PairwiseLoss):
    def per_query_loss(self, similarities, positive, negative):
        means = [(similarities * mask).sum(1) / mask.sum(1) for mask in (positive, negative)]
        return means[1] - means[0]


@pytest.mark.parametrize("queries", [None, slice(2, 9)])
@pytest.mark.parametrize("pairs", [None, SimilarityMixup().draw(LABELS), tuple(SimilarityMixup().draw(LABELS))])
def test_a_subclass_equals_the_function(queries, pairs):
    loss, embeddings = DifferenceOfMeans(), unit(13, 4).requires_grad_()
    value = loss(embeddings, LABELS, queries=queries, pairs=pairs)
    expected = pairwise_loss(embeddings, LABELS, loss.per_query_loss, queries, pairs)
    assert value == expected.loss
    assert loss.diagnostics == {"recall@1": expected.recall_at_1}
    gradients = [torch.autograd.grad(one, embeddings)[0] for one in (value, expected.loss)]
    assert torch.equal(*gradients)


class CircleWithoutCircle(CircleLoss):
    per_query_loss = DifferenceOfMeans.per_query_loss


def test_a_subclass_of_a_closed_form_may_implement_per_query_loss():
    embeddings = unit(13, 4).requires_grad_()
    values = [loss(embeddings, LABELS) for loss in (CircleWithoutCircle(), DifferenceOfMeans())]
    assert values[0] == values[1]
    assert torch.equal(*(torch.autograd.grad(value, embeddings)[0] for value in values))


@pytest.mark.parametrize("loss", [*LOSSES, DifferenceOfMeans(), UniLoss(tau=5.0).eval()])
@pytest.mark.parametrize(("block", "part"), [(1, 1), (90, 30), (90, 1000)])
def test_blocks_and_parts_change_nothing(loss, block, part, monkeypatch):
    embeddings = unit(13, 4).requires_grad_()
    whole = loss(embeddings, LABELS)
    monkeypatch.setattr(pairwise, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(pairwise, "PART_ELEMENTS", part)
    in_parts = loss(embeddings, LABELS)
    torch.testing.assert_close(in_parts, whole, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (in_parts, whole)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_a_subclass_equals_loops():
    embeddings = unit(13, 4)
    s = embeddings @ embeddings.T
    values = []
    for q in range(13):
        positives = [s[q, x].item() for x in range(13) if x != q and LABELS[x] == LABELS[q]]
        negatives = [s[q, x].item() for x in range(13) if LABELS[x] != LABELS[q]]
        if positives:
            values.append(sum(negatives) / len(negatives) - sum(positives) / len(positives))
    assert DifferenceOfMeans()(embeddings, LABELS).item() == pytest.approx(sum(values) / len(values))


def test_peak_memory_is_that_of_a_block():
    from lightning_recall.benchmarks.measure import peak_tensor_bytes

    def step(size):
        embeddings = F.normalize(torch.randn(size, 8), dim=1).requires_grad_()
        return peak_tensor_bytes(lambda: CircleLoss()(embeddings, torch.arange(size) // 4).backward())

    assert step(6000) < 1.5 * step(3000)  # the full matrix is 4 times as large


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's memory from /proc")
def test_the_memory_of_a_block_is_reused():
    """Measures the process, since tensors that outlive a block fragment the memory that the next block needs."""
    script = """
import torch
from lightning_recall.benchmarks.measure import example_batch, forward_backward, peak_bytes
from lightning_recall.losses import CircleLoss
batch = example_batch(8000, 32, "clustered", torch.device("cpu"))
print(peak_bytes(lambda: forward_backward(CircleLoss(), *batch), torch.device("cpu")) / 2**20)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 0.9 * 8000**2 * 4 / 2**20  # 0.6 of the matrix; 1.5 if memory is fragmented


class Spread(PairwiseLoss):
    def per_query_loss(self, similarities, positive, negative):
        means = [(similarities * mask).sum(1) / mask.sum(1) for mask in (positive, negative)]
        return means[1] - means[0]


class MeanSpread(Spread):
    def per_query_loss(self, similarities, positive, negative):
        return super().per_query_loss(similarities, positive, negative).mean()


class LearnedSpread(Spread):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))


def test_a_mean_over_queries_and_untrained_parameters_are_rejected():
    embeddings, labels = torch.nn.functional.normalize(torch.randn(12, 4), dim=1), torch.arange(12) // 3
    with pytest.raises(ValueError, match=r"per_query_loss must return one value per query, shape \(12,\), got shape"):
        MeanSpread()(embeddings, labels)
    with pytest.raises(ValueError, match=r"has parameters \(weight\), which a PairwiseLoss does not train"):
        LearnedSpread()(embeddings, labels)
    assert Spread()(embeddings, labels).shape == ()
