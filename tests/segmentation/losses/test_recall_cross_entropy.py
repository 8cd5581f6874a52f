import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_gather import run_processes
from torch import distributed

from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, pixel_cross_entropy
from lightning_recall.segmentation.losses import recall_cross_entropy as source

SHAPES = [(), (7,), (5, 6), (3, 4, 5)]


def example(shape=(5, 6), classes=4, images=3, dtype=torch.float64, ignored=0.0):
    """Some classes are right often, others never."""
    torch.manual_seed(len(shape))
    target = torch.randint(0, classes, (images, *shape))
    logits = torch.randn(images, classes, *shape, dtype=dtype)
    logits += 1.5 * F.one_hot(target, classes).movedim(-1, 1) * torch.linspace(0, 2, classes)[target].unsqueeze(1)
    target[torch.rand(target.shape) < ignored] = 255
    return logits.requires_grad_(), target


def by_loops(logits, target, floor=1, reduction="mean"):
    """The formula, pixel by pixel."""
    points = [
        (logits[(n, slice(None), *rest)], int(target[(n, *rest)]))
        for n, *rest in product(*map(range, target.shape))
        if target[(n, *rest)] != 255
    ]
    pixels, missed = [0] * logits.shape[1], [0] * logits.shape[1]
    for z, y in points:
        pixels[y] += 1
        missed[y] += any(z[c] >= z[y] for c in range(len(z)) if c != y)
    weights = [max(fn, floor) / max(gt, floor, 1) for fn, gt in zip(missed, pixels, strict=True)]
    total = sum(weights[y] * (z.exp().sum().log() - z[y]) for z, y in points)
    return total / {"mean": len(points), "sum": 1, "weighted_mean": sum(weights[y] for _, y in points)}[reduction]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("floor", [0, 1, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "weighted_mean"])
def test_value_and_gradient_equal_the_loops(shape, floor, reduction, monkeypatch):
    monkeypatch.setattr(pixel_cross_entropy, "BLOCK_ELEMENTS", 200)
    logits, target = example(shape, images=30 // max(1, math.prod(shape)) + 2, ignored=0.2)
    loss = RecallCrossEntropyLoss(4, 255, reduction=reduction, min_false_negatives=floor)(logits, target)
    expected = by_loops(logits, target, floor, reduction)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def weights_of(logits, labels, valid=None):
    right = pixel_cross_entropy.in_closed_form(logits, labels).is_right
    return source.class_weights(source.count_pixels(labels, right, valid, logits.shape[1]), 1, logits.dtype)


def test_the_weight_is_one_minus_the_recall_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")  # a test tool
    logits, target = example((20, 20))
    recall = metrics.recall_score(target.flatten(), logits.argmax(1).flatten(), average=None)
    assert 0 < recall.min() < recall.max() < 1
    weights = weights_of(logits, target)
    np.testing.assert_allclose(weights.numpy(), 1 - recall, rtol=0, atol=1e-15)


def test_the_gradient_is_that_of_cross_entropy_times_the_weight():
    logits, target = example(ignored=0.1)
    (gradient,) = torch.autograd.grad(RecallCrossEntropyLoss(4, 255)(logits, target), logits)
    labels, valid = source.split_ignored(target, 4, 255)
    weights = weights_of(logits, labels, valid)
    truth = F.one_hot(labels, 4).movedim(-1, 1)
    expected = (logits.softmax(1) - truth) * (weights[labels] * valid / valid.sum()).unsqueeze(1)
    torch.testing.assert_close(gradient, expected, atol=1e-16, rtol=0)


def test_gradcheck():
    logits, target = example((3,), images=2, ignored=0.2)
    assert torch.autograd.gradcheck(lambda z: RecallCrossEntropyLoss(4, 255)(z, target), logits)


def test_all_wrong_is_cross_entropy():
    logits, _ = example()
    wrong = logits.argmin(1)
    for settings in ({}, {"min_false_negatives": 0}, {"reduction": "weighted_mean"}):
        torch.testing.assert_close(RecallCrossEntropyLoss(4, **settings)(logits, wrong), F.cross_entropy(logits, wrong))


def test_all_right_has_the_floor():
    logits, _ = example()
    right = logits.argmax(1)
    losses = F.cross_entropy(logits, right, reduction="none")
    expected = sum(losses[right == c].mean() for c in range(4)) / right.numel()
    torch.testing.assert_close(RecallCrossEntropyLoss(4)(logits, right), expected)
    for reduction in ("mean", "weighted_mean"):
        loss = RecallCrossEntropyLoss(4, min_false_negatives=0, reduction=reduction)(logits, right)
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ties_are_wrong(dtype):
    """A network with equal logits everywhere has full weights."""
    logits, target = torch.zeros(2, 4, 3, 3, dtype=dtype), torch.randint(0, 4, (2, 3, 3))
    loss = RecallCrossEntropyLoss(4)(logits, target)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)


def test_reduction_none_has_a_value_per_pixel():
    logits, target = example(ignored=0.3)
    losses = RecallCrossEntropyLoss(4, 255, reduction="none")(logits, target)
    assert losses.shape == target.shape
    assert (losses[target == 255] == 0).all()
    torch.testing.assert_close(losses.sum() / (target != 255).sum(), RecallCrossEntropyLoss(4, 255)(logits, target))


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum"])
@pytest.mark.parametrize("images", [0, 2])
def test_without_valid_pixels_loss_and_gradient_are_zero(reduction, images):
    logits = torch.randn(images, 3, 4, 4, requires_grad=True)
    loss = RecallCrossEntropyLoss(3, 255, 0.5, reduction)
    value = loss(logits, torch.full((images, 4, 4), 255))
    assert value == 0
    assert (torch.autograd.grad(value, logits)[0] == 0).all()
    assert loss.running_weights.tolist() == [-1, -1, -1]


def test_order_of_pixels_and_classes_does_not_matter():
    logits, target = example()
    loss = RecallCrossEntropyLoss(4)
    pixels, classes = torch.randperm(30), torch.randperm(4)
    moved = loss(logits.flatten(2)[:, :, pixels], target.flatten(1)[:, pixels])
    renamed = loss(logits[:, classes], classes.argsort()[target])
    torch.testing.assert_close(torch.stack([moved, renamed]), loss(logits, target).repeat(2), atol=1e-14, rtol=0)


def test_ignored_pixels_and_absent_classes_change_nothing():
    logits, target = example((8,))
    target[target == 2] = 1
    loss, more = RecallCrossEntropyLoss(4, 255), torch.randn(3, 4, 2, dtype=torch.float64)
    padded = loss(torch.cat([logits, more], 2), F.pad(target, (0, 2), value=255))
    torch.testing.assert_close(padded, loss(logits, target), atol=1e-14, rtol=0)
    torch.testing.assert_close(padded, by_loops(logits, target), atol=1e-12, rtol=0)
    assert loss(logits, torch.ones_like(target)).isfinite()  # one class only


def test_momentum_averages_over_batches_with_the_class():
    loss = RecallCrossEntropyLoss(3, momentum=0.75)
    logits = torch.tensor([[9.0, 0.0, 0.0]]).repeat(4, 1)
    batches = [([0, 0, 0, 1], [1 / 3, 1, -1]), ([0, 0, 0, 0], [0.75 / 3 + 0.25 / 4, 1, -1])]
    for target, expected in batches:
        value = loss(logits.requires_grad_(), torch.tensor(target))
        torch.testing.assert_close(loss.running_weights, torch.tensor(expected))
        weights = loss.running_weights[torch.tensor(target)]
        losses = F.cross_entropy(logits, torch.tensor(target), reduction="none")
        torch.testing.assert_close(value, (weights * losses).mean())
    restored = RecallCrossEntropyLoss(3, momentum=0.75)
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(restored.running_weights, loss.running_weights)
    for model in (loss.eval(), loss.train()):
        with torch.set_grad_enabled(not model.training):  # evaluation, and training mode under no_grad
            value = model(logits, torch.tensor([2, 2, 1, 0]))
        assert torch.equal(restored.running_weights, loss.running_weights)
        weights = torch.tensor([1.0, 1.0, 1.0, restored.running_weights[0]])
        losses = F.cross_entropy(logits, torch.tensor([2, 2, 1, 0]), reduction="none")
        torch.testing.assert_close(value, (weights * losses).mean())


def test_without_momentum_there_is_no_state():
    assert RecallCrossEntropyLoss(3).state_dict() == {}
    assert "momentum=0.0" in repr(RecallCrossEntropyLoss(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_loss_is_computed_in_fp32(dtype):
    logits, target = example(dtype=torch.float32)
    low = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = RecallCrossEntropyLoss(4)(low, target)
    assert loss.dtype == torch.float32
    assert loss == RecallCrossEntropyLoss(4)(low.float(), target)
    assert torch.autograd.grad(loss, low)[0].dtype == dtype


def test_memory_formats_agree():
    logits, target = example()
    other = logits.detach().to(memory_format=torch.channels_last)
    torch.testing.assert_close(RecallCrossEntropyLoss(4)(other, target), RecallCrossEntropyLoss(4)(logits, target))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"reduction": "pixel"}, "reduction must be one of mean, weighted_mean, sum, none, got 'pixel'"),
        ({"min_false_negatives": -1}, "min_false_negatives must be at least 0, got -1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RecallCrossEntropyLoss(3, **settings)


PARTS = {2: [slice(0, 2), slice(2, 7)], 3: [slice(0, 1), slice(1, 2), slice(2, 7)]}


def steps(logits, target, reduction):
    """Two batches, so that the average matters."""
    loss = RecallCrossEntropyLoss(4, 255, 0.3, reduction).double()
    found = []
    for scale in (1.0, -0.5):
        value = loss(scale * logits, target)
        found += [value.detach(), torch.autograd.grad(value, logits)[0]]
    alone = loss.eval()(logits, target).detach()
    return [*found, loss.running_weights, alone]


def shared_batch():
    logits, target = example(images=7, ignored=0.3)
    target[1] = 255  # the second of three processes has no valid pixel
    return logits, target


def one_process(rank):
    logits, target = shared_batch()
    part = PARTS[distributed.get_world_size()][rank]
    local = logits[part].detach().requires_grad_()
    return [steps(local, target[part], reduction) for reduction in ("mean", "weighted_mean", "sum")]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world, tmp_path):
    logits, target = shared_batch()
    results = run_processes(one_process, world, tmp_path)
    for i, reduction in enumerate(("mean", "weighted_mean", "sum")):
        expected = steps(logits, target, reduction)
        locals_ = [result[i] for result in results]
        for k in (0, 2):
            value = torch.stack([local[k] for local in locals_]).mean()
            # DistributedDataParallel averages the gradients of the parameters
            gradient = torch.cat([local[k + 1] for local in locals_]) / world
            torch.testing.assert_close(value, expected[k], atol=1e-12, rtol=0)
            torch.testing.assert_close(gradient, expected[k + 1], atol=1e-12, rtol=0)
        for local in locals_:
            torch.testing.assert_close(local[4], expected[4], atol=1e-12, rtol=0)
        assert len({local[5].item() for local in locals_}) == world  # evaluation is local


def test_torch_compile():
    logits, target = example(dtype=torch.float32, ignored=0.2)
    loss = RecallCrossEntropyLoss(4, 255)
    compiled = torch.compile(loss, backend="eager")(logits, target)
    torch.testing.assert_close(compiled, loss(logits, target))
