import copy

import pytest
import torch
import torch.nn.functional as F

from lightning_recall.benchmarks.measure import peak_tensor_bytes
from lightning_recall.segmentation.losses import StructuralSimilarityLoss, structural_gradient


def example(dtype=torch.float64, shape=(9, 8)):
    torch.manual_seed(2)
    target = torch.randint(0, 4, (2, 3, 3)).repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :9, :8]
    return (2 * torch.randn(2, 4, *shape, dtype=dtype)).requires_grad_(), target


def by_formula(logits, target, weights, softmax=False, beta=0.1, ce_weight=0.5):
    """The formula for 3 x 3 windows with the weights of a third-party code, by unfolded windows."""
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).double()
    p = logits.softmax(1) if softmax else logits.sigmoid()

    def normalized(x):
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)
        mean = (windows * weights).sum((-1, -2))
        std = (weights * (windows - mean[..., None, None]) ** 2).sum((-1, -2)).sqrt()
        return (x - mean + 0.01) / (std + 0.01)

    error = (normalized(truth) - normalized(p)).abs()
    selected = error > beta * error.max()
    ce = -truth * p.log() - (0 if softmax else (1 - truth) * (1 - p).log())
    mean = ce.sum() / (target.numel() if softmax else ce.numel())
    return ce_weight * mean + (1 - ce_weight) * (error * selected * ce).sum() / selected.sum(), error, selected


def window():
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) / 4.5)
    return torch.outer(line, line) / line.sum() ** 2


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("detach", [True, False])
def test_equals_the_formula(softmax, detach):
    logits, target = example()
    activation = "softmax" if softmax else "sigmoid"
    loss = StructuralSimilarityLoss(4, activation=activation, detach_error=detach)(logits, target)
    expected, error, selected = by_formula(logits, target, window(), softmax)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    assert 0.2 < selected.double().mean() < 1
    (gradient,) = torch.autograd.grad(loss, logits)
    if not detach:
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], atol=1e-12, rtol=0)
        return
    hard = (error * selected / selected.sum()).detach()
    truth = F.one_hot(target, 4).movedim(-1, 1)
    if softmax:
        factor = 0.5 / target.numel() + 0.5 * hard.gather(1, target[:, None])
        right = (logits.softmax(1) - truth) * factor
    else:
        right = (logits.sigmoid() - truth) * (0.5 / truth.numel() + 0.5 * hard)
    torch.testing.assert_close(gradient, right, atol=1e-15, rtol=0)


def test_gradcheck_through_the_error():
    logits, target = example()
    loss = StructuralSimilarityLoss(4, detach_error=False, threshold=0)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)
    (first,) = torch.autograd.grad(loss(logits, target), logits, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), logits)[0].isfinite().all()


def test_lambda_one_is_cross_entropy():
    logits, target = example()
    truth = F.one_hot(target, 4).movedim(-1, 1).double()
    loss = StructuralSimilarityLoss(4, ce_weight=1)(logits, target)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, truth))
    loss = StructuralSimilarityLoss(4, ce_weight=1, activation="softmax")(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("detach", [True, False])
def test_saturated_and_flat_maps_are_finite(dtype, detach):
    _, target = example()
    truth = F.one_hot(target, 4).movedim(-1, 1).to(dtype)
    for scale in (0, 1e-6, 30, 100, 1e4):
        for sign in (1, -1):
            logits = (sign * scale * (2 * truth - 1)).requires_grad_()
            loss = StructuralSimilarityLoss(4, detach_error=detach)(logits, target)
            assert loss.isfinite()
            assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    perfect = StructuralSimilarityLoss(4, ce_weight=0)(1e4 * (2 * truth - 1), target)
    assert perfect == 0


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("images", [0, 2])
def test_without_valid_pixels_loss_and_gradient_are_zero(activation, images):
    logits = torch.randn(images, 3, 4, 4, requires_grad=True)
    for detach in (True, False):
        loss = StructuralSimilarityLoss(3, 255, activation=activation, detach_error=detach)
        value = loss(logits, torch.full((images, 4, 4), 255))
        assert value == 0
        assert (torch.autograd.grad(value, logits)[0] == 0).all()


def test_logits_of_ignored_pixels_change_nothing():
    logits, target = example()
    target[0, 2:5, 3:6] = 255
    other = logits.detach().clone()
    other[0, :, 2:5, 3:6] = 50 * torch.randn(4, 3, 3)
    other.requires_grad_()
    values = [StructuralSimilarityLoss(4, 255)(z, target) for z in (logits, other)]
    torch.testing.assert_close(*values, atol=1e-14, rtol=0)
    gradients = [torch.autograd.grad(value, z)[0] for value, z in zip(values, (logits, other), strict=True)]
    torch.testing.assert_close(*gradients, atol=1e-14, rtol=0)
    assert (gradients[1][0, :, 2:5, 3:6] == 0).all()


def test_order_of_images_and_classes_does_not_matter():
    logits, target = example()
    loss, classes = StructuralSimilarityLoss(4), torch.randperm(4)
    moved = loss(logits[:, classes].flip(0, 2), classes.argsort()[target].flip(0, 1))
    torch.testing.assert_close(moved, loss(logits, target), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("detach", [True, False])
def test_under_autocast_the_loss_is_computed_in_fp32(dtype, detach):
    logits, target = example(torch.float32)
    low = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = StructuralSimilarityLoss(4, detach_error=detach)(low, target)
    assert loss.dtype == torch.float32
    assert loss == StructuralSimilarityLoss(4, detach_error=detach)(low.float(), target)
    assert torch.autograd.grad(loss, low)[0].dtype == dtype


def test_memory_is_that_of_few_maps(monkeypatch):
    monkeypatch.setattr(structural_gradient, "BLOCK_ELEMENTS", {"cpu": 32 * 32})  # a small part of the logits
    logits = torch.randn(16, 19, 32, 32, requires_grad=True)
    target = torch.randint(0, 19, (16, 32, 32))
    truth = F.one_hot(target, 19).movedim(-1, 1).float().contiguous()

    def peak(loss):
        return peak_tensor_bytes(lambda: torch.autograd.grad(loss(), logits))

    ours = peak(lambda: StructuralSimilarityLoss(19)(logits, target))
    assert ours < 3 * peak(lambda: F.binary_cross_entropy_with_logits(logits, truth))


def test_logits_without_gradient():
    logits, target = example()
    assert StructuralSimilarityLoss(4)(logits.detach(), target) == StructuralSimilarityLoss(4)(logits, target)
    loss = copy.deepcopy(StructuralSimilarityLoss(4, activation="softmax"))
    assert "activation='softmax'" in repr(loss)
    assert loss.state_dict() == {}


def test_torch_compile():
    logits, target = example(torch.float32)
    loss = StructuralSimilarityLoss(4, 255)
    compiled = torch.compile(loss, backend="eager")(logits, target)
    torch.testing.assert_close(compiled, loss(logits, target))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ce_weight": 1.5}, "ce_weight must be from 0 to 1, got 1.5"),
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1, a fraction of the largest error, got 1.0"),
        ({"threshold": -0.1, "relative_threshold": False}, r"threshold must be at least 0, got -0.1"),
        ({"window_size": 4}, "window_size must be odd, got 4"),
        ({"window_size": 1}, "window_size must be at least 3, got 1"),
        ({"window_std": 0}, "window_std must be a finite number above 0, got 0"),
        ({"activation": "relu"}, "activation must be 'sigmoid' or 'softmax', got 'relu'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        StructuralSimilarityLoss(3, **settings)


def test_logits_without_pixels_are_refused():
    with pytest.raises(ValueError, match="at least one spatial dimension"):
        StructuralSimilarityLoss(3)(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
