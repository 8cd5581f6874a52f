"""Records loss and validation scores during training, and plots them against training steps."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.callbacks.output import end_progress_bar, output_path, print_path, unused_paths, writes_files
from lightning_recall.plots.training_curves import draw_training_curves


class TrainingCurves(Callback):
    """After training, writes `training_curves.png`: the loss of each step, and the scores of each validation.

    Checkpoints hold the curves, so that a resumed run plots the complete curves.

    Args:
        loss_key: key of the logged training loss.
        score_prefix: prefix of the keys of the validation scores, such as "val/miou" in a segmentation; or several
            prefixes, such as "val/source/accuracy" and "val/target/accuracy" in a domain adaptation.
    """

    def __init__(self, loss_key: str = "train/loss", score_prefix: str | Sequence[str] = "val/recall@") -> None:
        self.loss_key = loss_key
        self.score_prefixes = (score_prefix,) if isinstance(score_prefix, str) else tuple(score_prefix)
        self.points: dict[str, list[tuple[int, Tensor | float]]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the loss."""
        self._record(trainer, self.loss_key)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the validation scores."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            for key in trainer.callback_metrics:
                if key.startswith(self.score_prefixes):
                    self._record(trainer, key)

    def _record(self, trainer: Trainer, key: str) -> None:
        """Records the logged value of `key` at this step. The value is kept on its device to avoid a sync."""
        if key in trainer.callback_metrics:
            value = trainer.callback_metrics[key].detach().clone()
            self.points.setdefault(key, []).append((trainer.global_step, value))

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The points (optimizer step, value) of all curves."""
        return {key: [(step, float(value)) for step, value in points] for key, points in self.points.items()}

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return self.curves()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the curves from a checkpoint."""
        self.points = {key: list(points) for key, points in state_dict.items()}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the plot."""
        if not writes_files(trainer):
            return
        path = output_path(trainer, "training_curves.png")  # must be called on all processes
        curves = self.curves()
        if not trainer.is_global_zero or not curves:
            return
        (path,) = unused_paths(path)
        draw_training_curves(curves, self.loss_key).savefig(path, dpi=110)
        end_progress_bar(trainer)
        print_path("Training curves", path)
