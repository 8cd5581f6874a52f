"""Images with masks, and transforms of both."""

from lightning_recall.data.batches import ShuffledBatchSampler
from lightning_recall.segmentation.data.batches import SegmentationLoader
from lightning_recall.segmentation.data.files import SegmentationFiles
from lightning_recall.segmentation.data.in_memory import SegmentationArrays
from lightning_recall.segmentation.data.masks import IGNORED_PIXEL, MaskFormat
from lightning_recall.segmentation.data.transforms import SegmentationTransforms

__all__ = [
    "IGNORED_PIXEL",
    "MaskFormat",
    "SegmentationArrays",
    "SegmentationFiles",
    "SegmentationLoader",
    "SegmentationTransforms",
    "ShuffledBatchSampler",
]
