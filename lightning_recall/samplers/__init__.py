"""Batches with the same number of images of each class. Computed with numpy; torch gives the rank and world size."""

from lightning_recall.samplers.class_balanced import ClassBalancedBatchSampler
from lightning_recall.samplers.spread import max_num_batches

__all__ = ["ClassBalancedBatchSampler", "max_num_batches"]
