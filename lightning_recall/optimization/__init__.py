"""Manual optimization with the features of automatic optimization, and exact resuming for both."""

from lightning_recall.optimization.automatic_optimization import AutomaticOptimization
from lightning_recall.optimization.manual_optimization import ManualOptimization
from lightning_recall.optimization.optimizer_settings import OptimizerSettings
from lightning_recall.optimization.parameter_groups import split_parameters
from lightning_recall.optimization.warmup_cosine import WarmupCosineLR

__all__ = ["AutomaticOptimization", "ManualOptimization", "OptimizerSettings", "WarmupCosineLR", "split_parameters"]
