"""Trains image-retrieval models with a surrogate loss for Recall@k, the metric that they are evaluated with.

The names below are imported on first use, so that the losses, metrics and models work without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_recall.callbacks import RetrievalEvaluation
    from lightning_recall.datamodules import RetrievalDataModule
    from lightning_recall.gather import gather_rows
    from lightning_recall.losses import RecallAtKLoss
    from lightning_recall.metrics import RecallAtK, RetrievalScores
    from lightning_recall.mixup import SimilarityMixup
    from lightning_recall.models import ImageEmbedder
    from lightning_recall.modules import RetrievalModule
    from lightning_recall.recompute import chunked_forward
    from lightning_recall.samplers import ClassBalancedBatchSampler

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "ClassBalancedBatchSampler": "samplers",
    "ImageEmbedder": "models",
    "RecallAtK": "metrics",
    "RecallAtKLoss": "losses",
    "RetrievalDataModule": "datamodules",
    "RetrievalEvaluation": "callbacks",
    "RetrievalModule": "modules",
    "RetrievalScores": "metrics",
    "SimilarityMixup": "mixup",
    "chunked_forward": "recompute",
    "gather_rows": "gather",
}

__all__ = [
    "ClassBalancedBatchSampler",
    "ImageEmbedder",
    "RecallAtK",
    "RecallAtKLoss",
    "RetrievalDataModule",
    "RetrievalEvaluation",
    "RetrievalModule",
    "RetrievalScores",
    "SimilarityMixup",
    "chunked_forward",
    "gather_rows",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
