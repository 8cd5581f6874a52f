"""Networks from images (B, 3, H, W) to logits (B, C, H, W)."""

from lightning_recall.segmentation.models.feature_pyramid import FeaturePyramidSegmenter
from lightning_recall.segmentation.models.outputs import logits_of
from lightning_recall.segmentation.models.small_unet import SmallUNet

__all__ = ["FeaturePyramidSegmenter", "SmallUNet", "logits_of"]
