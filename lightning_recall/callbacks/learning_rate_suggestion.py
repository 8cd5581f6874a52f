"""A learning rate to train with, found before the training."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console

from lightning_recall._lightning import LearningRateFinder, LightningModule, Trainer, TunerExitException
from lightning_recall.callbacks.output import output_path, save_picture


class LearningRateSuggestion(LearningRateFinder):
    """Prints a learning rate to train with, draws how it was found, and ends: nothing is trained.

    As Lightning's `LearningRateFinder`, it raises the learning rate step by step, and suggests the one at which the
    loss falls fastest. It changes no setting, so that the settings of a training are always those that it states:

        lightning-recall fit --config FILE --trainer.callbacks+=LearningRateSuggestion

    Args:
        min_lr: the first learning rate, above 0.
        max_lr: the last.
        num_training_steps: how many steps lie between.

    Raises:
        ValueError: for learning rates out of range, and where the epochs end before so many steps.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 1.0, num_training_steps: int = 100) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"min_lr must be above 0 and below max_lr, got {min_lr} and {max_lr}.")
        super().__init__(min_lr, max_lr, num_training_steps, update_attr=False)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the learning rate, and ends the training."""
        super().lr_find(trainer, pl_module)
        if self.optimal_lr is None:
            return  # a trial run (fast_dev_run), of which Lightning has warned
        self.check_steps(trainer, len(self.optimal_lr.results["lr"]))
        suggestion = self.optimal_lr.suggestion()
        path = output_path(trainer, "learning_rates.png")  # asks all processes
        if trainer.is_global_zero:
            figure = self.optimal_lr.plot(suggest=True)
            assert isinstance(figure, Figure)
            save_picture(trainer, figure, path, "Losses at each learning rate")
            plt.close(figure)
            found = (
                "The steps are too few to suggest a learning rate."
                if suggestion is None
                else f"Suggested learning rate: {suggestion:.2g}. Set it as lr of the optimizer, or as max_lr of "
                "OneCycleLR, and train without LearningRateSuggestion."
            )
            Console(soft_wrap=True, highlight=False).print(found)
        raise TunerExitException  # the end that Lightning's Tuner makes

    def check_steps(self, trainer: Trainer, steps: int) -> None:
        """Raises ValueError if the epochs ended before the last learning rate; a loss that diverges ends earlier."""
        epochs, batches = trainer.max_epochs or -1, trainer.num_training_batches
        if 0 < epochs * batches <= steps < self._num_training_steps:
            raise ValueError(
                f"LearningRateSuggestion takes {self._num_training_steps} steps, but the training ends after {steps}: "
                f"set max_epochs to at least {-(-self._num_training_steps // int(batches))}, got {epochs}, or "
                f"num_training_steps to at most {steps}."
            )
