"""Derivatives of closed-form losses: first order under create_graph; second order raises; none in evaluation."""

import pytest
import torch
import torch.nn.functional as F

from lightning_recall import SimilarityMixup, losses

LABELS = torch.arange(12) // 3
CLOSED = {
    "RecallAtK": lambda: losses.RecallAtKLoss((1, 2), 1.0, 0.1),
    "SmoothAP": lambda: losses.SmoothAPLoss(0.1),
    "SupAP": lambda: losses.SupAPLoss(0.1, 0.3),
    "SupRecall": lambda: losses.SupRecallAtKLoss((1, 2), 1.0, 0.1, 0.3),
    "UniLoss": lambda: losses.UniLoss(tau=5.0).eval(),
    "Circle": lambda: losses.CircleLoss(0.3, 8),
    "Contrastive": lambda: losses.ContrastiveLoss(0.8, 0.1),
    "sum": lambda: losses.MultipleLosses([losses.RecallAtKLoss((1, 2), 1.0, 0.1)]),
    "memory": lambda: losses.CrossBatchMemory(losses.CircleLoss(0.3, 8), 30, 4).eval(),
}


@pytest.fixture(params=CLOSED)
def loss(request):
    return CLOSED[request.param]()


def raw():
    return torch.randn(12, 4, dtype=torch.float64).requires_grad_()


def penalty(value, leaf):
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    return gradient.square().sum()


def test_a_gradient_penalty_is_rejected(loss):
    leaf = raw()
    with pytest.raises(
        NotImplementedError, match="no second derivative with respect to the embeddings: its gradient is computed in"
    ):
        penalty(loss(F.normalize(leaf, dim=1), LABELS), leaf).backward()


@pytest.mark.parametrize("appended", [False, True])
def test_a_gradient_penalty_with_virtual_items_is_rejected(loss, appended):
    leaf, mixup = raw(), SimilarityMixup()
    embeddings = F.normalize(leaf, dim=1)
    value = loss(*mixup(embeddings, LABELS)) if appended else loss(embeddings, LABELS, pairs=mixup.draw(LABELS))
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(penalty(value, leaf), leaf)


def test_a_gradient_penalty_through_detached_weights_is_rejected():
    loss, leaf = losses.CircleProxyLoss(4, 4, 0.3, 8), raw()
    for by in (leaf, loss.proxies.weight):
        with pytest.raises(NotImplementedError, match="in closed form, or with weights that are constants"):
            torch.autograd.grad(penalty(loss(F.normalize(leaf, dim=1), LABELS), leaf), by)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(F.normalize(leaf, dim=1), LABELS), leaf)
    (gradient,) = torch.autograd.grad(scale.square() * loss(F.normalize(leaf, dim=1), LABELS), leaf, create_graph=True)
    torch.testing.assert_close(gradient, 4 * expected)
    (by_scale,) = torch.autograd.grad(gradient[0, 0], scale)
    torch.testing.assert_close(by_scale, 4 * expected[0, 0])  # d(w^2)/dw at 2


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # raised inside torch.func
def test_hessians_and_gradgradcheck_are_rejected(loss):
    embeddings = F.normalize(raw().detach(), dim=1).requires_grad_()
    for vectorize in (False, True):
        with pytest.raises(NotImplementedError, match="no second derivative"):
            torch.autograd.functional.hessian(lambda e: loss(e, LABELS), embeddings, vectorize=vectorize)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.gradgradcheck(lambda e: loss(e, LABELS), embeddings)
    with pytest.raises(RuntimeError):
        torch.func.hessian(lambda e: loss(e, LABELS))(embeddings)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True will create a reference cycle")
def test_first_derivatives_keep_the_graph_of_other_inputs(loss):
    """Second derivatives that do not pass through the embeddings are exact."""
    embeddings = F.normalize(raw().detach(), dim=1).requires_grad_()
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(embeddings, LABELS), embeddings)
    loss(embeddings, LABELS).backward(create_graph=True)
    assert torch.equal(embeddings.grad, expected)
    embeddings.grad = None
    (gradient,) = torch.autograd.grad(weight.square() * loss(embeddings, LABELS), embeddings, create_graph=True)
    torch.testing.assert_close(gradient, 4 * expected)
    direction = torch.randn_like(expected)
    (by_weight,) = torch.autograd.grad((gradient * direction).sum(), weight)
    torch.testing.assert_close(by_weight, 4 * (expected * direction).sum())  # d(w^2)/dw at 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("pairs", [None, (torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))])
def test_evaluation_computes_only_the_value(loss, mode, pairs):
    embeddings = F.normalize(raw().detach(), dim=1).requires_grad_()
    expected = loss(embeddings, LABELS, pairs=pairs).item()
    with mode():
        value = loss(embeddings, LABELS, pairs=pairs)
        assert value.item() == pytest.approx(expected, abs=1e-14)
        assert loss(F.normalize(embeddings, dim=1), LABELS).isfinite()
    assert not value.requires_grad
    assert "active_positives" not in loss.diagnostics


def test_proxy_losses_have_second_derivatives():
    embeddings = F.normalize(raw().detach(), dim=1).requires_grad_()
    for loss in (losses.NormalizedSoftmaxLoss(4, 4, 0.5), losses.ProxyAnchorLoss(4, 4, alpha=2)):
        loss.double()
        assert torch.autograd.gradgradcheck(lambda e, loss=loss: loss(e, LABELS), embeddings)
        weight = loss.proxies.weight
        gradient = torch.autograd.grad(loss(embeddings, LABELS), weight, create_graph=True)[0]
        assert torch.autograd.grad(gradient.square().sum(), weight)[0].abs().max() > 1e-6
        with torch.inference_mode():
            assert loss(embeddings, LABELS).isfinite()
