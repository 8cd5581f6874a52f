"""Data modules: one file per benchmark, and for images of your own."""

from lightning_recall.data.chunk_loader import ChunkLoader
from lightning_recall.data.image_files import ImageFiles, ImageTransforms, read_image
from lightning_recall.datamodules.base import RetrievalDataModule
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
    "Cars196DataModule",
    "ChunkLoader",
    "GlyphsDataModule",
    "INaturalist2018DataModule",
    "ImageFiles",
    "ImageFolderDataModule",
    "ImageTableDataModule",
    "ImageTransforms",
    "InShopDataModule",
    "LandmarksDataModule",
    "OmniglotDataModule",
    "RetrievalDataModule",
    "RevisitedDataModule",
    "SOPDataModule",
    "VehicleIDDataModule",
    "read_image",
]
