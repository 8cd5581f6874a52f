import pytest
import torch
import torch.nn.functional as F

from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, pixel_cross_entropy
from lightning_recall.segmentation.losses.pixel_cross_entropy import in_closed_form, right_pixels


def example(dtype=torch.float64, shape=(5, 6), scale=2.0):
    torch.manual_seed(0)
    logits = scale * torch.randn(4, 3, *shape, dtype=torch.float64)
    logits = logits.to(dtype)  # in half precision some are equal
    return logits.requires_grad_(), torch.randint(0, 3, (4, *shape))


@pytest.mark.parametrize("block", [1, 200, 2**21])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (5, 6)])
def test_equals_autograd(block, dtype, shape, monkeypatch):
    monkeypatch.setattr(pixel_cross_entropy, "BLOCK_ELEMENTS", block)
    logits, labels = example(dtype, shape)
    found = in_closed_form(logits, labels)
    assert torch.equal(found.is_right, right_pixels(logits, labels))
    losses = F.cross_entropy(logits.to(found.losses.dtype), labels, reduction="none")
    tolerance = {"atol": 1e-14 if dtype == torch.float64 else 1e-6, "rtol": 0}
    torch.testing.assert_close(found.losses, losses, **tolerance)
    weights = torch.rand(labels.shape, dtype=losses.dtype)
    pair = found.weighted(logits, labels, weights), losses * weights
    gradients = [torch.autograd.grad(values.sum(), logits)[0] for values in pair]
    assert gradients[0].dtype == dtype
    low = {"atol": 4e-3, "rtol": 0} if dtype in (torch.bfloat16, torch.float16) else tolerance
    torch.testing.assert_close(*gradients, **low)


def test_right_pixels_are_those_of_argmax_without_ties():
    logits, labels = example()
    assert torch.equal(in_closed_form(logits, labels).is_right, logits.argmax(1) == labels)
    tied = torch.tensor([[2.0, 2.0, 1.0], [2.0, 1.0, 2.0], [2.0, 1.0, 1.0]])
    assert in_closed_form(tied, torch.tensor([0, 2, 0])).is_right.tolist() == [False, False, True]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0, 1e4, 1e30])
def test_extreme_logits_are_finite(scale):
    logits, labels = example(torch.float32, scale=scale)
    found = in_closed_form(logits, labels)
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found.losses, expected.detach(), atol=1e-6, rtol=1e-5)
    assert found.residual.isfinite().all()


def test_masked_classes_have_minus_infinity():
    logits, labels = example()
    masked = logits.detach().clone()
    masked[:, 2] = -torch.inf
    found = in_closed_form(masked, labels.clamp(max=1))
    torch.testing.assert_close(found.losses, F.cross_entropy(masked, labels.clamp(max=1), reduction="none"))


def test_backward_twice_and_second_derivatives():
    logits, labels = example(shape=(2,))
    found = in_closed_form(logits, labels)
    value = found.weighted(logits, labels, torch.ones_like(labels)).sum()
    first, second = (torch.autograd.grad(value, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    weights = torch.rand(labels.shape, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda z: in_closed_form(z, labels).weighted(z, labels, weights), logits)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum", "none"])
def test_the_loss_is_the_same_by_autograd(reduction):
    logits, labels = example()
    labels[0, :2] = 255
    outer = torch.rand(labels.shape, dtype=torch.float64) if reduction == "none" else torch.tensor(2.5)
    results = []
    for closed_form in (True, False):
        loss = RecallCrossEntropyLoss(3, 255, reduction=reduction)
        loss.closed_form = closed_form
        value = loss(logits, labels)
        results.append((value.detach(), torch.autograd.grad((value * outer).sum(), logits)[0]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=0)
