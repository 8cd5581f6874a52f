import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as peers

from lightning_recall.losses import ProxyAnchorLoss


def by_loops(embeddings, targets, proxies, delta, alpha):
    positive, negative, present = 0.0, 0.0, set(targets)
    for place, proxy in enumerate(proxies):
        cosines = [float(x @ proxy) for x in embeddings]
        same = [math.exp(-alpha * (s - delta)) for s, t in zip(cosines, targets, strict=True) if t == place]
        others = [math.exp(alpha * (s + delta)) for s, t in zip(cosines, targets, strict=True) if t != place]
        positive += math.log(1 + sum(same)) / len(present) if same else 0.0
        negative += math.log(1 + sum(others)) / len(proxies)
    return positive + negative


def batch(rows=9, dim=4):
    return F.normalize(torch.randn(rows, dim, dtype=torch.float64), dim=1).requires_grad_(), [0, 1, 2, 0, 0, 2, 4, 4, 1]


def test_equals_the_equation_and_pytorch_metric_learning():
    embeddings, targets = batch()
    loss, peer = ProxyAnchorLoss(6, 4, delta=0.2, alpha=8).double(), peers.ProxyAnchorLoss(6, 4, 0.2, 8).double()
    labels = torch.tensor(targets)
    loss.proxies.label_indices(torch.arange(6))  # labels equal their indices
    peer.proxies.data.copy_(loss.proxies.weight.data)
    value = loss(F.normalize(embeddings, dim=1), labels)
    other = peer(embeddings, labels)  # it normalises
    expected = by_loops(embeddings.detach(), targets, F.normalize(loss.proxies.weight.detach(), dim=1), 0.2, 8)
    assert abs(value.item() - expected) < 1e-12
    torch.testing.assert_close(value, other, atol=1e-12, rtol=0)
    ours = torch.autograd.grad(value, (embeddings, loss.proxies.weight))
    theirs = torch.autograd.grad(other, (embeddings, peer.proxies))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-12, rtol=0)


def test_gradcheck_and_order_does_not_matter():
    embeddings, targets = batch()
    loss, labels = ProxyAnchorLoss(6, 4, alpha=4).double(), torch.tensor(targets)
    assert torch.autograd.gradcheck(lambda rows: loss(rows, labels), embeddings)
    order = torch.randperm(9)
    torch.testing.assert_close(loss(embeddings[order], labels[order]), loss(embeddings, labels))


def test_one_class_and_low_precision():
    loss = ProxyAnchorLoss(1, 4)
    rows = F.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    value = loss(rows, torch.zeros(3, dtype=torch.int64))  # no proxy has an item of another class
    value.backward()
    assert rows.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(rows.bfloat16(), torch.zeros(3, dtype=torch.int64)).dtype == torch.float32


def test_wrong_use_is_rejected():
    with pytest.raises(ValueError, match="alpha must be a finite number above 0, got 0"):
        ProxyAnchorLoss(2, 3, alpha=0)
    with pytest.raises(ValueError, match="3 different labels, but num_classes is 2"):
        ProxyAnchorLoss(2, 3)(torch.randn(3, 3), torch.arange(3))
