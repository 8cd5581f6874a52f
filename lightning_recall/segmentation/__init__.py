"""Semantic segmentation: losses for rare classes and for boundaries, a LightningModule, data modules and callbacks.

The names below are imported on first use, so that losses, networks and scores work without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_recall.segmentation.callbacks import ClassTable, MaskWriter, SegmentedImages
    from lightning_recall.segmentation.data import SegmentationTransforms
    from lightning_recall.segmentation.datamodules import (
        CamVidDataModule,
        CityscapesDataModule,
        MaskFolderDataModule,
        PascalVOCDataModule,
        ScenesDataModule,
        SegmentationDataModule,
        SynthiaDataModule,
    )
    from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, StructuralSimilarityLoss
    from lightning_recall.segmentation.models import FeaturePyramidSegmenter, SmallUNet
    from lightning_recall.segmentation.module import SegmentationModule
    from lightning_recall.segmentation.scores import SegmentationScores
