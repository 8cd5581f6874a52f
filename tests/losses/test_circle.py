import math

import pytest
import torch
import torch.nn.functional as F

from lightning_recall.losses import CircleLoss, CircleProxyLoss, pairwise

LABELS = torch.tensor([3, 1, 1, 3, 3, 0, 1, 9, 3, 0, 3, 4, 4])


def unit(n, d, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, dtype=dtype), dim=1)


def by_loops(embeddings, labels, m, gamma):
    s = embeddings @ embeddings.T
    values = []
    for q in range(len(labels)):
        right = [s[q, x] for x in range(len(labels)) if x != q and labels[x] == labels[q]]
        wrong = [s[q, x] for x in range(len(labels)) if labels[x] != labels[q]]
        if right and wrong:
            of_wrong = sum(torch.exp(gamma * max(t.item() + m, 0) * (t - m)) for t in wrong)
            of_right = sum(torch.exp(-gamma * max(1 + m - t.item(), 0) * (t - (1 - m))) for t in right)
            values.append(torch.log(1 + of_wrong * of_right))
    return sum(values) / len(values)


@pytest.mark.parametrize("block", [1, 40, 2**20])
def test_value_and_gradient_equal_the_loops(block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK_ELEMENTS", block)
    embeddings = unit(13, 4).requires_grad_()
    pair = CircleLoss(0.25, 16)(embeddings, LABELS), by_loops(embeddings, LABELS, 0.25, 16)
    torch.testing.assert_close(*pair, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in pair]
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("m", "gamma"), [(0.25, 256), (0.4, 80), (0.25, 64)])
def test_equals_pytorch_metric_learning(m, gamma):
    theirs = pytest.importorskip("pytorch_metric_learning.losses")  # optional dependency of the tests
    embeddings, labels = unit(24, 8).requires_grad_(), torch.arange(24) // 4
    pair = CircleLoss(m, gamma)(embeddings, labels), theirs.CircleLoss(m, gamma)(embeddings, labels)
    torch.testing.assert_close(*pair, atol=1e-11, rtol=1e-12)
    # theirs normalises again, which removes the component of the gradient along the embeddings
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in pair]
    sideways = [g - (g * embeddings).sum(1, keepdim=True) * embeddings for g in gradients]
    torch.testing.assert_close(*sideways, atol=1e-11, rtol=1e-12)


def two_similarities(positive, negative):
    """An anchor, and items with these similarities to it."""
    s = torch.tensor([positive, negative], dtype=torch.float64)
    others = torch.stack([s, (1 - s * s).sqrt()], 1)
    return torch.cat([torch.tensor([[1.0, 0.0]], dtype=torch.float64), others]), torch.tensor([0, 0, 1])


def test_the_case_computed_by_hand():
    embeddings, labels = two_similarities(0.6, 0.3)
    embeddings.requires_grad_()
    value = CircleLoss(0.25, 8)(embeddings, labels, queries=slice(0, 1))
    assert value.item() == pytest.approx(math.log(1 + math.e), abs=1e-12)
    (gradient,) = torch.autograd.grad(value, embeddings)
    assert gradient[1, 0].item() == pytest.approx(-3.8015046, abs=1e-7)  # with respect to s_p: the weights are detached
    assert gradient[2, 0].item() == pytest.approx(3.2166577, abs=1e-7)


def test_the_loss_is_log_2_on_the_circle():
    m = 0.25
    for angle in (0.1, 0.7, 1.4):  # s_n^2 + (1 - s_p)^2 = 2 m^2
        radius = math.sqrt(2) * m
        embeddings, labels = two_similarities(1 - radius * math.cos(angle), radius * math.sin(angle))
        value = CircleLoss(m, 256)(embeddings, labels, queries=slice(0, 1))
        assert value.item() == pytest.approx(math.log(2), abs=1e-9)


def test_perfect_clusters():
    embeddings = torch.eye(6, dtype=torch.float64).repeat_interleave(4, 0)
    value = CircleLoss(0.25, 256)(embeddings, torch.arange(24) // 4)
    assert value.item() == pytest.approx(math.log1p(3 * 20 * math.exp(-2 * 256 * 0.25**2)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stable_at_the_largest_scale(dtype):
    embeddings = unit(256, 16).to(dtype)
    labels = torch.arange(256) // 4
    leaf = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CircleLoss(0.25, 256)(leaf, labels)
    value.backward()
    expected = CircleLoss(0.25, 256)(embeddings.double(), labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.isfinite(leaf.grad).all()
    opposite = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]], dtype=dtype, requires_grad=True)
    CircleLoss(0.25, 256)(opposite, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(opposite.grad).all()


def test_the_class_level_form_is_a_cross_entropy():
    loss = CircleProxyLoss(5, 4, m=0.25, gamma=16).double()
    embeddings, labels = unit(9, 4).requires_grad_(), torch.randint(0, 5, (9,))
    value = loss(embeddings, labels)
    proxies = F.normalize(loss.proxies.weight, dim=1)
    place = {int(label): number for number, label in enumerate(labels.unique())}
    expected = 0
    for x, label in zip(embeddings, labels.tolist(), strict=True):
        s = proxies @ x
        own = place[label]
        others = [16 * max(s[j].item() + 0.25, 0) * (s[j] - 0.25) for j in range(5) if j != own]
        right = 16 * max(1.25 - s[own].item(), 0) * (s[own] - 0.75)
        logits = torch.stack([right, *others])
        expected = expected + F.cross_entropy(logits[None], torch.tensor([0])) / 9
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    leaves = (embeddings, loss.proxies.weight)
    for ours, theirs in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("settings", [{"m": 0}, {"m": 1.0}, {"gamma": 0}])
def test_wrong_settings_are_rejected(settings):
    for make in (CircleLoss, lambda **kwargs: CircleProxyLoss(3, 2, **kwargs)):
        with pytest.raises(ValueError, match="m must be above 0 and below 1, gamma above 0"):
            make(**settings)


def test_batches_without_a_valid_query_are_rejected():
    for labels in (torch.zeros(4, dtype=torch.int64), torch.arange(4)):
        with pytest.raises(ValueError, match="No query has both a positive and a negative"):
            CircleLoss()(torch.randn(4, 2), labels)
