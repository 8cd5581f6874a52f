"""LightningModules, imported on first use: the help of the command needs this package, but not Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_recall.modules.export import export_module
    from lightning_recall.modules.retrieval import RetrievalModule
    from lightning_recall.modules.shared_module import SharedModule
    from lightning_recall.modules.threshold import ModuleWithThreshold
    from lightning_recall.optimization.manual_optimization import ManualOptimization

_FILE_OF_NAME = {
    "ManualOptimization": "lightning_recall.optimization.manual_optimization",
    "ModuleWithThreshold": "lightning_recall.modules.threshold",
    "RetrievalModule": "lightning_recall.modules.retrieval",
    "SharedModule": "lightning_recall.modules.shared_module",
    "export_module": "lightning_recall.modules.export",
}

__all__ = ["ManualOptimization", "ModuleWithThreshold", "RetrievalModule", "SharedModule", "export_module"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _FILE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FILE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
