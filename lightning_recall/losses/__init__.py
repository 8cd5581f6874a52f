"""Losses: (embeddings (N, D), labels (N,)) -> scalar. Depends only on torch and NumPy."""

from lightning_recall.losses.average_precision import SmoothAPLoss, SupAPLoss
from lightning_recall.losses.circle import CircleLoss, CircleProxyLoss
from lightning_recall.losses.combined import CrossBatchMemory, MultipleLosses
from lightning_recall.losses.contrastive import ContrastiveLoss
from lightning_recall.losses.proxies import NormalizedSoftmaxLoss
from lightning_recall.losses.proxy_anchor import ProxyAnchorLoss
from lightning_recall.losses.recall_at_k import RecallAtKLoss
from lightning_recall.losses.sup_recall_at_k import SupRecallAtKLoss
from lightning_recall.losses.uniloss import UniLoss

__all__ = [
    "CircleLoss",
    "CircleProxyLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "MultipleLosses",
    "NormalizedSoftmaxLoss",
    "ProxyAnchorLoss",
    "RecallAtKLoss",
    "SmoothAPLoss",
    "SupAPLoss",
    "SupRecallAtKLoss",
    "UniLoss",
]
