"""Batches with the same number of images of each class. Uses numpy, and torch for the processes of a training."""

from lightning_recall.samplers.class_balanced import ClassBalancedBatchSampler
from lightning_recall.samplers.spread import most_batches

__all__ = ["ClassBalancedBatchSampler", "most_batches"]
