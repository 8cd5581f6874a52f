"""Data modules for benchmarks, one file each, and for your own images."""

from lightning_recall.datamodules.base import RetrievalDataModule
from lightning_recall.datamodules.cached_features import CachedFeaturesDataModule
from lightning_recall.datamodules.cars196 import Cars196DataModule
from lightning_recall.datamodules.cub import CUB200DataModule
from lightning_recall.datamodules.glyphs import GlyphsDataModule
from lightning_recall.datamodules.image_folder import ImageFolderDataModule
from lightning_recall.datamodules.image_table import ImageTableDataModule
from lightning_recall.datamodules.in_shop import InShopDataModule
from lightning_recall.datamodules.inaturalist import INaturalist2018DataModule
from lightning_recall.datamodules.landmarks import LandmarksDataModule
from lightning_recall.datamodules.omniglot import OmniglotDataModule
from lightning_recall.datamodules.revisited import RevisitedDataModule
from lightning_recall.datamodules.sop import SOPDataModule
from lightning_recall.datamodules.vehicle_id import VehicleIDDataModule

__all__ = [
    "CUB200DataModule",
    "CachedFeaturesDataModule",
    "Cars196DataModule",
    "GlyphsDataModule",
    "INaturalist2018DataModule",
    "ImageFolderDataModule",
    "ImageTableDataModule",
    "InShopDataModule",
    "LandmarksDataModule",
    "OmniglotDataModule",
    "RetrievalDataModule",
    "RevisitedDataModule",
    "SOPDataModule",
    "VehicleIDDataModule",
]
