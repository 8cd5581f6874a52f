"""Data modules with a labelled source domain and an unlabelled target domain."""

from lightning_recall.adaptation.datamodules.base import AdaptationDataModule
from lightning_recall.adaptation.datamodules.digits import DigitsAdaptationDataModule
from lightning_recall.adaptation.datamodules.domain_folder import DomainFolderDataModule
from lightning_recall.adaptation.datamodules.drawn_digits import DrawnDigitsDataModule

__all__ = ["AdaptationDataModule", "DigitsAdaptationDataModule", "DomainFolderDataModule", "DrawnDigitsDataModule"]
