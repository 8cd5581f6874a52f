"""Suggests a learning rate with a learning rate range test."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lightning_recall._lightning import LearningRateFinder, LightningModule, Trainer, TunerExitException
from lightning_recall.callbacks.output import output_path, print_line, save_picture


class LearningRateSuggestion(LearningRateFinder):
    """Runs Lightning's learning rate finder, prints and plots the suggestion, and stops without training.

    Like Lightning's `LearningRateFinder`, it increases the learning rate step by step, and suggests the one at which
    the loss falls fastest. It does not change the learning rate of the module:

        lightning-recall fit --config FILE --trainer.callbacks+=LearningRateSuggestion

    Args:
        min_lr: smallest learning rate tried, above 0.
        max_lr: largest learning rate tried.
        num_training_steps: number of steps from `min_lr` to `max_lr`.

    Raises:
        ValueError: for learning rates out of range, or if training has fewer steps than `num_training_steps`.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 1.0, num_training_steps: int = 100) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"min_lr must be above 0 and below max_lr, got {min_lr} and {max_lr}.")
        super().__init__(min_lr, max_lr, num_training_steps, update_attr=False)
        self.num_steps = num_training_steps

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the learning rate, and ends fit."""
        super().lr_find(trainer, pl_module)
        if self.optimal_lr is None:
            return  # a trial run (fast_dev_run); Lightning has warned
        self.check_steps(trainer, len(self.optimal_lr.results["lr"]))
        suggestion = self.optimal_lr.suggestion()
        path = output_path(trainer, "learning_rates.png")  # must be called on all processes
        if trainer.is_global_zero:
            figure = self.optimal_lr.plot(suggest=True)
            assert isinstance(figure, Figure)
            save_picture(trainer, figure, path, "Losses at each learning rate")
            plt.close(figure)
            message = (
                "Too few steps to suggest a learning rate."
                if suggestion is None
                else f"Suggested learning rate: {suggestion:.2g}. Set it as lr of the optimizer, or as max_lr of "
                "OneCycleLR, and train without LearningRateSuggestion."
            )
            print_line(message)
        raise TunerExitException  # ends fit early, as Lightning's Tuner does

    def check_steps(self, trainer: Trainer, steps: int) -> None:
        """Raises ValueError if the epochs ended before the last learning rate.

        A diverging loss may stop the search earlier.
        """
        epochs, batches = trainer.max_epochs or -1, trainer.num_training_batches
        if 0 < epochs * batches <= steps < self.num_steps:
            raise ValueError(
                f"LearningRateSuggestion needs {self.num_steps} steps, but the training ends after {steps}: "
                f"set max_epochs to at least {-(-self.num_steps // int(batches))}, got {epochs}, or "
                f"num_training_steps to at most {steps}."
            )
