"""LightningDataModules of images and masks."""

from lightning_recall.segmentation.datamodules.base import SegmentationDataModule
from lightning_recall.segmentation.datamodules.camvid import CamVidDataModule
from lightning_recall.segmentation.datamodules.cityscapes import CityscapesDataModule
from lightning_recall.segmentation.datamodules.mask_folder import MaskFolderDataModule
from lightning_recall.segmentation.datamodules.pascal_voc import PascalVOCDataModule
from lightning_recall.segmentation.datamodules.scenes import ScenesDataModule
from lightning_recall.segmentation.datamodules.synthia import RandCityscapesDataModule, SynthiaSequencesDataModule

__all__ = [
    "CamVidDataModule",
    "CityscapesDataModule",
    "MaskFolderDataModule",
    "PascalVOCDataModule",
    "RandCityscapesDataModule",
    "ScenesDataModule",
    "SegmentationDataModule",
    "SynthiaSequencesDataModule",
]
