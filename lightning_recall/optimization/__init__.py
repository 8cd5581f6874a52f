"""Manual optimization with the features of automatic optimization: clipping, accumulation, schedulers, resuming."""

from lightning_recall.optimization.manual_optimization import ManualOptimization
from lightning_recall.optimization.optimizer_settings import OptimizerSettings
from lightning_recall.optimization.parameter_groups import split_parameters

__all__ = ["ManualOptimization", "OptimizerSettings", "split_parameters"]
