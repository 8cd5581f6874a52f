"""Draws loss and Recall@k over the training."""

from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.callbacks.output import free_paths, keeps_files, output_path, print_path

Points = list[tuple[int, float]]
"""(optimizer step, value)"""


class TrainingCurves(Callback):
    """After training, writes `training_curves.png`: the loss of each step, and Recall@k of each validation.

    The curves are kept in checkpoints, so that a resumed training draws all of them.

    Args:
        loss: key of the logged training loss.
        scores: beginning of the keys of the validation scores.
    """

    def __init__(self, loss: str = "train/loss", scores: str = "val/recall@") -> None:
        self.loss = loss
        self.scores = scores
        self.points: dict[str, list[tuple[int, Tensor | float]]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the loss."""
        self.note(trainer, self.loss)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the scores of a validation within the training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            for key in trainer.callback_metrics:
                if key.startswith(self.scores):
                    self.note(trainer, key)

    def note(self, trainer: Trainer, key: str) -> None:
        """Adds the logged value of `key` at this step; it stays on its device until it is needed."""
        if key in trainer.callback_metrics:
            self.points.setdefault(key, []).append(
                (trainer.global_step, trainer.callback_metrics[key].detach().clone())
            )

    def curves(self) -> dict[str, Points]:
        """Points of all curves as numbers."""
        return {key: [(step, float(value)) for step, value in points] for key, points in self.points.items()}

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return self.curves()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the curves of a checkpoint."""
        self.points = {key: list(points) for key, points in state_dict.items()}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        if not keeps_files(trainer):
            return
        path = output_path(trainer, "training_curves.png")  # asks all processes
        curves = self.curves()
        if not trainer.is_global_zero or not curves:
            return
        (path,) = free_paths(path)
        draw_curves(curves, self.loss).savefig(path, dpi=110)
        print_path("Loss and Recall@k over the training", path)


def draw_curves(curves: dict[str, Points], loss: str) -> Figure:
    """Two panels: the loss, and all other curves, in percent."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = ("solid", "dashed", "dashdot", "dotted")
    if loss in curves:
        left.plot(*zip(*curves[loss], strict=True), linewidth=0.8)
    others = sorted((key for key in curves if key != loss), key=lambda key: curves[key][-1][1])
    for number, key in enumerate(others):
        steps, values = zip(*curves[key], strict=True)
        percent = [100 * value for value in values]
        right.plot(steps, percent, linestyle=styles[number % 4], marker=".", label=f"{key}: {percent[-1]:.1f}")
    left.set(xlabel="step", ylabel=loss, title="Training loss", ylim=(0, None))
    right.set(xlabel="step", ylabel="%", title="Recall@k on the validation classes")
    if others:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
