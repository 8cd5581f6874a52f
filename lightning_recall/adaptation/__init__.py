"""Domain adaptation: classifiers for images without labels, by gradient reversal and domain mixup.

The names below are imported on first use, so that losses, networks and scores work without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_recall.adaptation.callbacks import (
        ClusterAgreement,
        ConfusionMatrix,
        DomainImages,
        DomainTable,
        FeaturePlane,
        PredictionWriter,
    )
    from lightning_recall.adaptation.dann import DANNModule
    from lightning_recall.adaptation.data import (
        DomainArrays,
        DomainFiles,
        DomainPairs,
        PairedBatchSampler,
        PairedLoader,
        PhotoTransforms,
    )
    from lightning_recall.adaptation.datamodules import (
        AdaptationDataModule,
        DigitsAdaptationDataModule,
        DomainFolderDataModule,
        DrawnDigitsDataModule,
    )
    from lightning_recall.adaptation.dm_ada import DMADAModule, DMADAWeights
    from lightning_recall.adaptation.domain_mixup import DomainMixup
    from lightning_recall.adaptation.gradient_reversal import GradientReversal
    from lightning_recall.adaptation.models import (
        BackboneEncoder,
        DANNClassifier,
        DANNEncoder,
        DigitDiscriminator,
        DigitEncoder,
        DigitGenerator,
        FeatureClassifier,
        FeatureDiscriminator,
        GaussianEncoder,
        ImageDiscriminator,
        ImageGenerator,
    )
    from lightning_recall.adaptation.module import AdaptationModule
    from lightning_recall.adaptation.network_optimizers import NetworkOptimizer
    from lightning_recall.adaptation.scores import DomainScores
    from lightning_recall.adaptation.source_only import SourceOnlyModule

_MODULE_OF_NAME = {
    "AdaptationDataModule": "datamodules",
    "AdaptationModule": "module",
    "BackboneEncoder": "models",
    "ClusterAgreement": "callbacks",
    "ConfusionMatrix": "callbacks",
    "DANNClassifier": "models",
    "DANNEncoder": "models",
    "DANNModule": "dann",
    "DMADAModule": "dm_ada",
    "DMADAWeights": "dm_ada",
    "DigitDiscriminator": "models",
    "DigitEncoder": "models",
    "DigitGenerator": "models",
    "DigitsAdaptationDataModule": "datamodules",
    "DomainArrays": "data",
    "DomainFiles": "data",
    "DomainFolderDataModule": "datamodules",
    "DomainImages": "callbacks",
    "DomainMixup": "domain_mixup",
    "DomainPairs": "data",
    "DomainScores": "scores",
    "DomainTable": "callbacks",
    "DrawnDigitsDataModule": "datamodules",
    "FeatureClassifier": "models",
    "FeatureDiscriminator": "models",
    "FeaturePlane": "callbacks",
    "GaussianEncoder": "models",
    "GradientReversal": "gradient_reversal",
    "ImageDiscriminator": "models",
    "ImageGenerator": "models",
    "NetworkOptimizer": "network_optimizers",
    "PairedBatchSampler": "data",
    "PairedLoader": "data",
    "PhotoTransforms": "data",
    "PredictionWriter": "callbacks",
    "SourceOnlyModule": "source_only",
}

__all__ = [
    "AdaptationDataModule",
    "AdaptationModule",
    "BackboneEncoder",
    "ClusterAgreement",
    "ConfusionMatrix",
    "DANNClassifier",
    "DANNEncoder",
    "DANNModule",
    "DMADAModule",
    "DMADAWeights",
    "DigitDiscriminator",
    "DigitEncoder",
    "DigitGenerator",
    "DigitsAdaptationDataModule",
    "DomainArrays",
    "DomainFiles",
    "DomainFolderDataModule",
    "DomainImages",
    "DomainMixup",
    "DomainPairs",
    "DomainScores",
    "DomainTable",
    "DrawnDigitsDataModule",
    "FeatureClassifier",
    "FeatureDiscriminator",
    "FeaturePlane",
    "GaussianEncoder",
    "GradientReversal",
    "ImageDiscriminator",
    "ImageGenerator",
    "NetworkOptimizer",
    "PairedBatchSampler",
    "PairedLoader",
    "PhotoTransforms",
    "PredictionWriter",
    "SourceOnlyModule",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
