"""Losses of adversarial domain adaptation; all compute in at least float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.tensors import at_least_float32


def domain_loss(logits: Tensor, label: float) -> Tensor:
    """Binary cross-entropy of domain logits with one label for all images.

    mean_n -label log s(x_n) - (1 - label) log(1 - s(x_n)), with the sigmoid s. DM-ADA's released code computes it from
    probabilities; logits give the same value and are exact in low precision too.

    Args:
        logits: (B,).
        label: 1 for the source, 0 for the target, or a soft label between, which stays a fraction.

    Raises:
        ValueError: for a label outside [0, 1].

    >>> domain_loss(torch.zeros(4), 0.3)
    tensor(0.6931)
    """
    if not 0 <= label <= 1:
        raise ValueError(f"A domain label must be from 0 (target) to 1 (source), got {label}.")
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) and labels (B,)."""
    return F.cross_entropy(at_least_float32(logits), labels)


def gaussian_kl(features: Tensor) -> Tensor:
    """KL divergence of Gaussians from the standard normal distribution, averaged over the batch.

    mean_n 0.5 * sum_d (exp(v) + mu^2 - 1 - v), with means mu and log-variances v (arXiv 1312.6114, appendix B).

    Args:
        features: (B, 2 d), means and log-variances, concatenated.

    Raises:
        ValueError: for an odd number of features.

    >>> gaussian_kl(torch.zeros(3, 8)), gaussian_kl(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    (tensor(0.), tensor(1.))
    """
    if features.shape[1] % 2:
        raise ValueError(
            f"The features must be means and as many log-variances, got {features.shape[1]} features: use "
            "GaussianEncoder, or another encoder with an even number of features."
        )
    mu, log_variance = at_least_float32(features).chunk(2, dim=1)
    return 0.5 * (log_variance.exp() + mu.square() - 1 - log_variance).sum(1).mean()


def mixup_triplet_loss(mixed: Tensor, source: Tensor, target: Tensor, ratio: float) -> Tensor:
    """Triplet loss: embeddings of mixed images are nearer to those of the domain with the larger share.

    mean_n [|t(x_m) - t(near)| - |t(x_m) - t(far)| + |2 lambda - 1|]_+, with Euclidean distances. near is the source
    image if lambda > 0.5, otherwise the target image (arXiv 1912.01805 and its released code). Distances are those of
    torch's TripletMarginLoss, which adds 1e-6 to each difference.

    Args:
        mixed: embeddings (B, E) of mixed images.
        source: those of the source images in the mix.
        target: those of the target images in the mix.
        ratio: lambda, from 0 to 1.

    >>> same, other = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    >>> mixup_triplet_loss(same, same, other, ratio=1.0), mixup_triplet_loss(same, same, other, ratio=0.1).round()
    (tensor(0.), tensor(6.))
    """
    near, far = (source, target) if ratio > 0.5 else (target, source)
    mixed, near, far = (at_least_float32(part) for part in (mixed, near, far))
    return F.triplet_margin_loss(mixed, near, far, margin=abs(2 * ratio - 1))
