"""Ctrl-C ends a training so that it can go on."""

import signal
import threading
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console

from lightning_recall.callbacks.output import output_path


class SavedOnInterrupt(Callback):
    """Ctrl-C ends a training after the batch that it is in, with a checkpoint from which it goes on as if never ended.

    The checkpoint is `checkpoints/interrupted.ckpt` in the run's folder. A second Ctrl-C ends at once and saves
    nothing. Several processes end after the same batch. Outside the main thread, where Python tells no signals, it does
    nothing.

    `lightning-recall` adds it to every run.
    """

    def __init__(self) -> None:
        self.asked = False
        self.previous: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C."""
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_: Any) -> None:
        """Ctrl-C was pressed."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        rank_zero_info("Ending after this batch, with a checkpoint. Ctrl-C again: at once, without.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and ends, if that was asked for, of any process."""
        if not trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            return
        path = output_path(trainer, "checkpoints") / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            say = Console(soft_wrap=True, highlight=False).print
            say(f"Saved after step {trainer.global_step:,}. To go on, add to the same command: --ckpt_path {path}")
        raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives Ctrl-C back."""
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
            self.previous = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives Ctrl-C back."""
        self.on_train_end(trainer, pl_module)
