"""Losses of adversarial domain adaptation; all compute in at least float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.tensors import at_least_float32


def domain_loss(logits: Tensor, label: float) -> Tensor:
    """Binary cross-entropy of domain logits (B,) with one label for all: 1 source, 0 target, or a soft label between.

    >>> domain_loss(torch.zeros(4), 0.3)
    tensor(0.6931)
    """
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

    >>> gaussian_kl(torch.zeros(3, 8)), gaussian_kl(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    (tensor(0.), tensor(1.))
    """
    mu, log_variance = at_least_float32(features).chunk(2, dim=1)
    return 0.5 * (log_variance.exp() + mu.square() - 1 - log_variance).sum(1).mean()


def mixup_triplet_loss(mixed: Tensor, source: Tensor, target: Tensor, ratio: float) -> Tensor:
    """Triplet loss: embeddings of mixed images are nearer to those of the domain with the larger share.

    mean_n [|t(x_m) - t(near)| - |t(x_m) - t(far)| + |2 lambda - 1|]_+, with Euclidean distances. near is the source
    image if lambda > 0.5, otherwise the target image (arXiv 1912.01805, equation 9 and the released code).

    Args:
        mixed: embeddings (B, E) of mixed images.
        source: those of the source images in the mix.
        target: those of the target images in the mix.
        ratio: lambda.
    """
    near, far = (source, target) if ratio > 0.5 else (target, source)
    mixed, near, far = (at_least_float32(part) for part in (mixed, near, far))
    return F.triplet_margin_loss(mixed, near, far, margin=abs(2 * ratio - 1))
