"""Callbacks that show and write what a segmentation network predicts."""

from lightning_recall.segmentation.callbacks.class_table import ClassTable
from lightning_recall.segmentation.callbacks.mask_writer import MaskWriter
from lightning_recall.segmentation.callbacks.segmented_images import SegmentedImages

__all__ = ["ClassTable", "MaskWriter", "SegmentedImages"]
