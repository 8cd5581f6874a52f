import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.distributions import Normal, kl_divergence

from lightning_recall.adaptation.losses import class_loss, domain_loss, gaussian_kl, mixup_triplet_loss

GENERATOR = torch.Generator().manual_seed(2)
LOGITS = torch.randn(7, dtype=torch.float64, generator=GENERATOR)
A, B, C = (torch.randn(5, 3, dtype=torch.float64, generator=GENERATOR) for _ in range(3))


@pytest.mark.parametrize("label", [0.0, 0.27, 1.0])
def test_the_domain_loss_is_the_binary_cross_entropy(label):
    p = expit(LOGITS.numpy())
    expected = np.mean(-label * np.log(p) - (1 - label) * np.log(1 - p))
    assert domain_loss(LOGITS, label).item() == pytest.approx(expected, abs=1e-12)


def test_a_soft_label_has_its_minimum_at_its_logit():
    logit = torch.tensor([math.log(0.3 / 0.7)], dtype=torch.float64, requires_grad=True)
    domain_loss(logit, 0.3).backward()
    assert logit.grad.abs().item() < 1e-15


def test_logits_far_from_0_stay_finite_in_low_precision():
    loss = domain_loss(torch.tensor([200.0, -200.0], dtype=torch.float16), 0.0)
    assert loss.dtype == torch.float32
    assert loss.item() == 100


def test_a_label_out_of_range_raises():
    for label in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"label must be from 0 \(target\) to 1 \(source\)"):
            domain_loss(LOGITS, label)


def test_the_class_loss_is_the_mean_of_the_negative_log_probabilities():
    labels = torch.tensor([0, 2, 1, 1, 0])
    rows = A.numpy() - np.log(np.exp(A.numpy()).sum(1, keepdims=True))
    expected = -np.mean([row[label] for row, label in zip(rows, labels.tolist(), strict=True)])
    assert class_loss(A, labels).item() == pytest.approx(expected, abs=1e-12)
    assert class_loss(A.bfloat16(), labels).dtype == torch.float32


def test_the_divergence_is_that_of_torch_distributions():
    divergences = kl_divergence(Normal(A, (B / 2).exp()), Normal(0.0, 1.0))
    expected = divergences.sum(1).mean().item()
    assert gaussian_kl(torch.cat([A, B], dim=1)).item() == pytest.approx(expected, abs=1e-12)


def test_divergences_by_hand():
    assert gaussian_kl(torch.zeros(2, 6)) == 0
    assert gaussian_kl(torch.cat([torch.ones(2, 5), torch.zeros(2, 5)], dim=1)) == 2.5  # d / 2


def test_an_odd_number_of_features_raises():
    with pytest.raises(ValueError, match="means and as many log-variances, got 5 features: use GaussianEncoder"):
        gaussian_kl(torch.zeros(2, 5))


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.6, 0.85, 1.0])
def test_the_triplet_loss_draws_the_mix_to_the_larger_share(ratio):
    total = 0.0
    for mixed, source, target in zip(A.numpy(), B.numpy(), C.numpy(), strict=True):
        near, far = (source, target) if ratio > 0.5 else (target, source)
        total += max(np.linalg.norm(mixed - near + 1e-6) - np.linalg.norm(mixed - far + 1e-6) + abs(2 * ratio - 1), 0)
    assert mixup_triplet_loss(A, B, C, ratio).item() == pytest.approx(total / 5, abs=1e-12)
    inputs = [x.clone().requires_grad_() for x in (A, B, C)]
    assert torch.autograd.gradcheck(lambda *x: mixup_triplet_loss(*x, ratio), inputs)


def test_the_margin_is_1_for_ratio_1():
    """With equal distances the loss is the margin."""
    mixed, near = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    for ratio, margin in ((1.0, 1.0), (0.6, 0.2), (0.1, 0.8)):
        assert mixup_triplet_loss(mixed, near, near, ratio).item() == pytest.approx(margin)
