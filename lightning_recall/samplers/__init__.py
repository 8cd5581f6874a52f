"""Batches with the same number of images from each of their classes. Numpy, and torch for the number of processes."""

from lightning_recall.samplers.class_balanced import ClassBalancedBatchSampler
from lightning_recall.samplers.spread import most_batches

__all__ = ["ClassBalancedBatchSampler", "most_batches"]
