"""LightningDataModules of images and masks."""

from lightning_recall.segmentation.datamodules.base import SegmentationDataModule
from lightning_recall.segmentation.datamodules.camvid import CamVidDataModule
from lightning_recall.segmentation.datamodules.mask_folder import MaskFolderDataModule
from lightning_recall.segmentation.datamodules.scenes import ScenesDataModule

__all__ = ["CamVidDataModule", "MaskFolderDataModule", "ScenesDataModule", "SegmentationDataModule"]
