"""Images of two domains, and training batches of both."""

from lightning_recall.adaptation.batches import NO_LABEL
from lightning_recall.adaptation.data.images import DomainArrays, DomainFiles
from lightning_recall.adaptation.data.pairs import DomainPairs, PairedBatchSampler, PairedLoader
from lightning_recall.adaptation.data.transforms import PhotoTransforms

__all__ = [
    "NO_LABEL",
    "DomainArrays",
    "DomainFiles",
    "DomainPairs",
    "PairedBatchSampler",
    "PairedLoader",
    "PhotoTransforms",
]
