"""Base of the callbacks that show a result after fit, validate and test."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from lightning_recall._lightning import Callback, LightningModule, Trainer


class AfterEvaluation(Callback):
    """Shows a result of the module after fit, validate and test; after fit, that of the last validation.

    A subclass sets `attribute`, and overrides `show`.

    Args:
        class_names: names of the classes; None: the module's `class_names`, those of the data module, or numbers.
    """

    attribute: ClassVar[str]
    """attribute of the module that holds the result of its last evaluation"""

    def __init__(self, class_names: Sequence[str] | None = None) -> None:
        self.class_names = class_names

    @abstractmethod
    def show(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Shows the result of a split, "val" or "test"; called on all processes."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the last validation of a training, if there was one."""
        if getattr(pl_module, self.attribute, None):
            self.show(trainer, pl_module, "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the result, except during a training."""
        if trainer.state.fn == "validate":
            self.show(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the result."""
        self.show(trainer, pl_module, "test")
