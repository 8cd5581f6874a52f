import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_recall.benchmarks.segmentation_methods import (
    METHODS,
    HardPixelLoss,
    PixelCounts,
    inverse_frequency,
    median_frequency,
)

COUNTS = PixelCounts(np.array([[50, 10, 0], [30, 0, 6], [20, 4, 0]]))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_loss_that_ignores_pixels(name):
    if "SMP" in name:
        pytest.importorskip("segmentation_models_pytorch")  # a test tool
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 6, 8, requires_grad=True), torch.randint(0, 3, (2, 6, 8))
    target[:, :2] = 255
    loss = METHODS[name](COUNTS).train()(logits, target)
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.count_nonzero(gradient[:, :, :2]) == 0
    assert torch.count_nonzero(gradient[:, :, 2:]) > 0


def test_weights_of_the_literature():
    inverse = inverse_frequency(COUNTS)
    assert torch.allclose(inverse / inverse[0], torch.tensor([1, 100 / 14, 100 / 6]))
    frequencies = np.array([100 / 120, 14 / 84, 6 / 36])  # SegNet: of the images in which a class occurs
    assert np.allclose(median_frequency(COUNTS), np.median(frequencies) / frequencies)


def test_weighted_losses_ignore_the_scale_of_their_weights():
    torch.manual_seed(0)
    logits, target = torch.randn(4, 3, 5, 5), torch.randint(0, 3, (4, 5, 5))
    expected = F.cross_entropy(logits, target, torch.tensor([1, 100 / 14, 100 / 6]))
    assert torch.allclose(METHODS["inverse frequency"](COUNTS)(logits, target), expected)


def test_rarest_classes():
    assert COUNTS.rarest(2).tolist() == [2, 1]
    assert np.allclose(COUNTS.frequencies, [100 / 120, 14 / 120, 6 / 120])


def test_hard_pixels_are_those_with_the_largest_losses():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    target[0, 0] = 255
    losses = sorted(
        F.cross_entropy(logits[b, :, i, j], target[b, i, j]).item()
        for b, i, j in np.ndindex(2, 5, 5)
        if target[b, i, j] != 255
    )
    assert HardPixelLoss(0.6)(logits, target).item() == pytest.approx(np.mean(losses[-27:]), rel=1e-5)
    assert HardPixelLoss()(logits, torch.full_like(target, 255)) == 0
