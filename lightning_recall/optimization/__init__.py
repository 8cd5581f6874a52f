"""Manual optimization with everything that automatic optimization does: clipping, accumulation, schedulers, resume."""

from lightning_recall.optimization.manual_optimization import ManualOptimization

__all__ = ["ManualOptimization"]
