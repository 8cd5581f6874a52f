"""LightningModule that logs its scores after each validation and test, and keeps those of a training."""

from abc import abstractmethod

from torch import Tensor

from lightning_recall._lightning import LightningModule
from lightning_recall.callbacks.dataloaders import checks_all_batches
from lightning_recall.callbacks.validation_history import Validation, ValidationHistory


class ScoredModule(LightningModule):
    """Logs its scores at the end of each validation and test, and records those of a training in `history`.

    A subclass sets `history` and overrides `computed_scores` and `forget_results`. A sanity check that covers all
    batches before the first step is recorded as the baseline "before training"; shorter sanity checks have no scores.
    """

    history: ValidationHistory

    @abstractmethod
    def computed_scores(self, split: str) -> dict[str, Tensor]:
        """The scores of all dataloaders over all processes, key -> score; split is "val" or "test"."""

    @abstractmethod
    def forget_results(self) -> None:
        """Removes the results of the last evaluation that callbacks show."""

    def check_scores(self, scores: dict[str, float]) -> None:
        """Checks the scores of a validation during training; does nothing by default."""

    def on_validation_epoch_end(self) -> None:
        """Logs and records the scores."""
        self.forget_results()
        if not self.trainer.sanity_checking:
            scores = self.log_scores("val")
            if self.trainer.state.fn == "fit":
                self.check_scores(scores)
                self.history.validations.append(Validation(self.trainer.current_epoch + 1, scores))
        elif self.trainer.global_step == 0 and checks_all_batches(self.trainer):
            scores = {key: value.item() for key, value in self.computed_scores("val").items()}
            self.history.baselines = {"before training": scores}

    def on_test_epoch_end(self) -> None:
        """Logs the scores."""
        self.forget_results()
        self.log_scores("test")

    def log_scores(self, split: str) -> dict[str, float]:
        """Logs and returns the scores of a split, by key."""
        scores = self.computed_scores(split)
        self.log_dict(scores, sync_dist=True)
        return {key: value.item() for key, value in scores.items()}
