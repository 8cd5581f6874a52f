import pytest
import torch
from test_gather import run_processes
from torch import distributed

from lightning_recall.segmentation.losses import StructuralSimilarityLoss, structural_gradient


def example(images=3, shape=(9, 8), classes=5, ignored=0.0, dtype=torch.float64):
    torch.manual_seed(1)
    target = torch.randint(0, classes, (images, *[-(-n // 3) for n in shape]))
    for dim, size in enumerate(shape, start=1):
        target = target.repeat_interleave(3, dim).narrow(dim, 0, size)
    logits = 3 * torch.randn(images, classes, *shape, dtype=dtype)
    target = target.masked_fill(torch.rand(target.shape) < ignored, 255)
    return logits.requires_grad_(), target


def autograd_loss(logits, target, **settings):
    """The plain version: one pass over all maps, differentiated by autograd."""
    loss = StructuralSimilarityLoss(logits.shape[1], 255, **settings)
    loss.closed_form = False
    return loss(logits, target)


@pytest.mark.parametrize("block", [1, 150, 2**20])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "softmax"},
        {"relative_threshold": False, "threshold": 0.3, "window_size": 5, "window_std": 0.8},
        {"ce_weight": 0.2, "threshold": 0.5, "activation": "softmax"},
    ],
)
def test_equals_autograd(block, ignored, settings, monkeypatch):
    monkeypatch.setattr(structural_gradient, "BLOCK_ELEMENTS", {"cpu": block})
    logits, target = example(ignored=ignored)
    pair = StructuralSimilarityLoss(5, 255, **settings)(logits, target), autograd_loss(logits, target, **settings)
    torch.testing.assert_close(*pair, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(2.5 * value, logits)[0] for value in pair]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(11,), (4, 5, 3)])
def test_any_number_of_dimensions(shape):
    logits, target = example(shape=shape, ignored=0.2)
    pair = StructuralSimilarityLoss(5, 255)(logits, target), autograd_loss(logits, target)
    torch.testing.assert_close(*pair, atol=1e-12, rtol=0)
    torch.testing.assert_close(*[torch.autograd.grad(v, logits)[0] for v in pair], atol=1e-12, rtol=0)


def test_backward_twice():
    logits, target = example()
    loss = StructuralSimilarityLoss(5)(logits, target)
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_second_derivatives_equal_autograd(activation):
    logits, target = example(ignored=0.2)
    loss = StructuralSimilarityLoss(5, 255, activation=activation)
    seconds = []
    for value in (loss(logits, target), autograd_loss(logits, target, activation=activation)):
        (gradient,) = torch.autograd.grad(1.5 * value, logits, create_graph=True)
        seconds.append(torch.autograd.grad((gradient**2).sum(), logits)[0])
    assert seconds[0].abs().max() > 1e-7
    torch.testing.assert_close(*seconds, atol=1e-14, rtol=1e-9)


PARTS = {2: [slice(0, 2), slice(2, 7)], 3: [slice(0, 1), slice(1, 2), slice(2, 7)]}
SETTINGS = ({}, {"activation": "softmax"}, {"detach_error": False})


def shared_batch():
    logits, target = example(images=7, ignored=0.3)
    target[1] = 255  # the second of three processes has no valid pixel
    return logits, target


def value_and_gradient(logits, target):
    found = []
    for settings in SETTINGS:
        value = StructuralSimilarityLoss(5, 255, **settings)(logits, target)
        found.append([value.detach(), *torch.autograd.grad(value, logits)])
    return found


def one_process(rank):
    logits, target = shared_batch()
    part = PARTS[distributed.get_world_size()][rank]
    alone = StructuralSimilarityLoss(5, 255).eval()(logits[part], target[part]).item()  # without other processes
    return value_and_gradient(logits[part].detach().requires_grad_(), target[part]), alone


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world, tmp_path):
    results = run_processes(one_process, world, tmp_path)
    for i, (value, gradient) in enumerate(value_and_gradient(*shared_batch())):
        parts = [found[i] for found, _ in results]
        mean = torch.stack([local for local, _ in parts]).mean()
        torch.testing.assert_close(mean, value, atol=1e-12, rtol=0)
        # DistributedDataParallel averages the gradients of the parameters
        torch.testing.assert_close(torch.cat([g for _, g in parts]) / world, gradient, atol=1e-12, rtol=0)
    assert len({alone for _, alone in results}) == world
