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
        RandCityscapesDataModule,
        ScenesDataModule,
        SegmentationDataModule,
        SynthiaSequencesDataModule,
    )
    from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, StructuralSimilarityLoss
    from lightning_recall.segmentation.models import FeaturePyramidSegmenter, SmallUNet
    from lightning_recall.segmentation.module import SegmentationModule
    from lightning_recall.segmentation.scores import SegmentationScores

_MODULE_OF_NAME = {
    "CamVidDataModule": "datamodules",
    "CityscapesDataModule": "datamodules",
    "ClassTable": "callbacks",
    "FeaturePyramidSegmenter": "models",
    "MaskFolderDataModule": "datamodules",
    "MaskWriter": "callbacks",
    "PascalVOCDataModule": "datamodules",
    "RandCityscapesDataModule": "datamodules",
    "RecallCrossEntropyLoss": "losses",
    "ScenesDataModule": "datamodules",
    "SegmentationDataModule": "datamodules",
    "SegmentationModule": "module",
    "SegmentationScores": "scores",
    "SegmentationTransforms": "data",
    "SegmentedImages": "callbacks",
    "SmallUNet": "models",
    "StructuralSimilarityLoss": "losses",
    "SynthiaSequencesDataModule": "datamodules",
}

__all__ = [
    "CamVidDataModule",
    "CityscapesDataModule",
    "ClassTable",
    "FeaturePyramidSegmenter",
    "MaskFolderDataModule",
    "MaskWriter",
    "PascalVOCDataModule",
    "RandCityscapesDataModule",
    "RecallCrossEntropyLoss",
    "ScenesDataModule",
    "SegmentationDataModule",
    "SegmentationModule",
    "SegmentationScores",
    "SegmentationTransforms",
    "SegmentedImages",
    "SmallUNet",
    "StructuralSimilarityLoss",
    "SynthiaSequencesDataModule",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
