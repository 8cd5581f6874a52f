import itertools

import pytest
import torch
import torch.nn.functional as F

from lightning_recall.losses import RecallAtKLoss, UniLoss, pairwise, uniloss
from lightning_recall.losses.anchors import recall_from_counts
from lightning_recall.losses.uniloss import interpolate

LABELS = torch.tensor([3, 1, 1, 3, 3, 0, 1, 9, 3, 0, 3, 4, 4])


def unit(n, d):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


def recall_of_signs(signs, ks):
    """Recall of an explicit ranking with these comparisons: positives sorted by the number of negatives above them."""
    ahead = sorted((row < 0).sum().item() for row in signs)
    ranks = [place + count for place, count in enumerate(ahead, 1)]
    return sum(sum(rank <= k for rank in ranks) / min(k, len(ranks)) for k in ks) / len(ks)


def by_anchors(embeddings, labels, loss):
    """One query at a time, with full anchor matrices, interpolated with autograd."""
    s = embeddings @ embeddings.T
    n = len(labels)
    most = int(labels.unique(return_counts=True)[1].max()) - 1
    samples = loss.draw(most, n)
    values = []
    for q in range(n):
        right = [x for x in range(n) if x != q and labels[x] == labels[q]]
        wrong = [x for x in range(n) if labels[x] != labels[q]]
        if not right:
            continue
        u = 2 * torch.sigmoid(loss.tau * (s[q, right][:, None] - s[q, wrong][None])) - 1  # (P, N)
        best, current = torch.ones_like(u), torch.where(u > 0, 1.0, -1.0).to(u.dtype).detach()
        anchors = [best]
        for p, z in samples.flip_uniforms.tolist():
            flipped = best.clone()
            flipped[int(torch.tensor(p) * len(right)), int(torch.tensor(z) * len(wrong))] = -1
            anchors.append(flipped)
        misses = (current < 0).nonzero()
        for number, uniform in enumerate(samples.correct_uniforms):
            if len(misses):
                corrected = current.clone()
                corrected[tuple(misses[int(uniform * len(misses))])] = 1
                anchors.append(corrected)
            else:
                anchors.append(anchors[1 + number])
        anchors += [bad[: len(right), wrong].to(u.dtype) for bad in samples.random]
        known = torch.tensor([recall_of_signs(anchor, loss.ks) for anchor in anchors], dtype=u.dtype)
        values.append(1 - interpolate(u.flatten(), torch.stack(anchors).flatten(1), known))
    return sum(values) / len(values)


@pytest.mark.parametrize(("block", "part"), [(1, 1), (40, 70), (2**20, 2**20)])
@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_value_and_gradient_equal_full_anchor_matrices(block, part, tau, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(uniloss, "PART_ELEMENTS", part)
    embeddings = unit(13, 4).requires_grad_()
    loss = UniLoss((1, 2, 4), tau, num_good=5, num_bad=4)
    for _ in range(3):  # new anchors each time
        expected, value = by_anchors(embeddings, LABELS, loss), loss(embeddings, LABELS)
        torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
        gradients = [torch.autograd.grad(one, embeddings)[0] for one in (value, expected)]
        assert gradients[1].abs().max() > 1e-4
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_a_batch_without_a_wrong_comparison():
    embeddings = torch.eye(3, dtype=torch.float64).repeat_interleave(3, 0).requires_grad_()
    labels = torch.arange(9) // 3
    loss = UniLoss((1, 2), 3.0, num_good=4, num_bad=3)
    expected = by_anchors(embeddings, labels, loss)  # no comparison is wrong
    torch.testing.assert_close(loss(embeddings, labels), expected, atol=1e-12, rtol=0)


def test_the_interpolation_of_two_anchors():
    u = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    anchors, values = torch.tensor([[1.0, 1], [-1, 1]]).double(), torch.tensor([2.0, 5.0]).double()
    d = (u - anchors).norm(dim=1)
    expected = (values[0] * d[1] + values[1] * d[0]) / (d[0] + d[1])
    torch.testing.assert_close(interpolate(u, anchors, values), expected)
    assert torch.autograd.gradcheck(lambda u: interpolate(u, anchors, values), u)
    for anchor, value in zip(anchors, values, strict=True):
        torch.testing.assert_close(interpolate(anchor, anchors, values), value, atol=1e-5, rtol=0)
    many = interpolate(torch.randn(20, 6), torch.randn(20, 9, 6), torch.rand(20, 9))
    assert 0 <= many.min() <= many.max() <= 1


def test_the_gradient_is_exact():
    """dL/du = sum over i of -(v_i - L) (u - b_i) / (d_i^3 W); the authors' code has v_i + L instead."""
    u, anchors, values = torch.randn(6).double(), torch.randn(9, 6).double(), torch.rand(9).double()
    leaf = u.clone().requires_grad_()
    value = interpolate(leaf, anchors, values)
    (gradient,) = torch.autograd.grad(value, leaf)
    d = (u - anchors).norm(dim=1)
    by_sign = [
        -((values + sign * value.detach()) / d**3)[:, None] * (u - anchors) / (1 / d).sum() for sign in (-1.0, 1.0)
    ]
    torch.testing.assert_close(gradient, by_sign[0].sum(0), atol=1e-14, rtol=0)
    assert (gradient - by_sign[1].sum(0)).norm() > 0.1 * gradient.norm()


def test_recall_from_counts_equals_recall_of_a_ranking():
    generator = torch.Generator().manual_seed(0)
    ks = torch.tensor([1, 2, 4, 9])
    for positives, negatives in itertools.product((1, 2, 3), (1, 2, 5)):
        scores = torch.rand(50, positives + negatives, generator=generator)
        right, wrong = scores[:, :positives], scores[:, positives:]
        counts = (wrong[:, None] > right[:, :, None]).sum(2)
        for row, count in zip(scores, counts, strict=True):
            order = row.argsort(descending=True)
            ranks = [order.tolist().index(p) + 1 for p in range(positives)]
            expected = sum(sum(rank <= k for rank in ranks) / min(k, positives) for k in ks.tolist()) / 4
            found = recall_from_counts(count[None, None], torch.tensor([positives]), ks)
            assert found.item() == pytest.approx(expected)


def test_parts_add_up_and_states_reload():
    embeddings, loss = unit(13, 4), UniLoss(tau=5.0)
    loss.eval()
    whole = loss(embeddings, LABELS)
    parts = [(slice(0, 6), 6), (torch.arange(6, 13), 6)]
    total = sum(loss(embeddings, LABELS, queries=part) * count for part, count in parts) / 12
    torch.testing.assert_close(total, whole, atol=1e-12, rtol=0)
    loss.train()
    for _ in range(3):
        loss(embeddings, LABELS)
    other = UniLoss(tau=5.0)
    other.load_state_dict(loss.state_dict())
    assert other(embeddings, LABELS) == loss(embeddings, LABELS)
    assert other(embeddings, LABELS) != UniLoss(tau=5.0)(embeddings, LABELS)  # other anchors
    assert UniLoss(tau=5.0, seed=1)(embeddings, LABELS) != UniLoss(tau=5.0)(embeddings, LABELS)


def test_it_trains():
    torch.manual_seed(0)
    labels = torch.arange(64) // 4
    inputs = F.one_hot(labels, 16).float() + 0.5 * torch.randn(64, 16)
    net = torch.nn.Linear(16, 8)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    loss, exact = UniLoss(tau=10.0), RecallAtKLoss((1,))
    before = float(exact(F.normalize(net(inputs), dim=1).detach(), labels))
    for _ in range(60):
        optimizer.zero_grad()
        loss(F.normalize(net(inputs), dim=1), labels).backward()
        optimizer.step()
    assert float(exact(F.normalize(net(inputs), dim=1).detach(), labels)) < before - 0.2


@pytest.mark.filterwarnings("ignore:UniLoss expects unit-norm embeddings")
@pytest.mark.parametrize("embeddings", [torch.zeros(4, 2), torch.ones(4, 2), 1e3 * torch.randn(4, 2)])
def test_extremes_give_finite_gradients(embeddings):
    leaf = embeddings.requires_grad_()
    UniLoss()(leaf, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": (0,)}, "ks must be one or more positive integers"),
        ({"tau": 0}, "tau must be a finite number above 0"),
        ({"num_good": 0}, "num_good must be at least 1, got 0"),
        ({"num_bad": 2.5}, "num_bad must be an integer, at least 0, got 2.5"),
    ],
)
def test_wrong_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        UniLoss(**settings)
