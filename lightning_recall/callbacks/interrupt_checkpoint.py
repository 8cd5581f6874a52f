"""Ctrl-C ends a training so that it can be resumed."""

import os
import signal
import threading
import time
from typing import Any

from rich.console import Console
from torch.multiprocessing.spawn import ProcessExitedException

from lightning_recall._lightning import Callback, LightningModule, MultiProcessingLauncher, Trainer, rank_zero_info
from lightning_recall.callbacks.output import output_path

INTERRUPTED = 130  # exit code of a process that a launcher has started: 128 + SIGINT
SAME_KEY = 1.0  # seconds within which a launched process gets one Ctrl-C twice: from the terminal and its launcher


class InterruptCheckpoint(Callback):
    """Ctrl-C (SIGINT) ends a training after the current batch, with a checkpoint that resumes it exactly.

    The checkpoint is `checkpoints/interrupted.ckpt` in the run's folder. A second Ctrl-C ends at once and saves
    nothing. With several processes, it does not matter which of them gets the signal, the process that has launched
    them included: all end after the same batch, and the exit code is 1. Outside the main thread, where Python handles
    no signals, the callback does nothing.

    With a strategy that starts processes from this one (`ddp_fork`, `ddp_spawn`, `ddp_notebook`), validation, test and
    prediction end after a SIGINT to one process, too; without this callback Lightning waits for them forever.

    `lightning-recall` adds it to every run.
    """

    def __init__(self) -> None:
        self.asked = False
        self.asked_at = 0.0
        self.process = 0
        self.previous: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives a launched process an exit code that its launcher notices: it ignores a KeyboardInterrupt."""
        if launches_processes(trainer) and in_main_thread():
            signal.signal(signal.SIGINT, exit_interrupted)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C."""
        self.asked = False
        self.process = os.getpid()
        if in_main_thread():
            self.previous = signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_: Any) -> None:
        """Handles SIGINT during a training."""
        if os.getpid() != self.process:
            return  # a loader's worker, which has inherited the handler
        if self.asked and self.previous is exit_interrupted and time.monotonic() < self.asked_at + SAME_KEY:
            return
        if self.asked:
            raise SystemExit(INTERRUPTED) if self.previous is exit_interrupted else KeyboardInterrupt
        self.asked, self.asked_at = True, time.monotonic()
        rank_zero_info("Ending after this batch, with a checkpoint. Ctrl-C again: at once, without.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and ends, if any process was asked to."""
        if not trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            return
        path = output_path(trainer, "checkpoints") / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            say = Console(soft_wrap=True, highlight=False).print
            say(f"Saved after step {trainer.global_step:,}. To resume, add to the same command: --ckpt_path {path}")
        raise SystemExit(INTERRUPTED) if launches_processes(trainer) else KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives Ctrl-C back."""
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
            self.previous = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives Ctrl-C back; a launcher passes it on to its processes, and ends when they have."""
        self.on_train_end(trainer, pl_module)
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, MultiProcessingLauncher):
            return
        if isinstance(exception, KeyboardInterrupt):  # of the launcher, which is in its main thread
            launcher.kill(signal.SIGINT)
            signal.signal(signal.SIGINT, lambda *_: launcher.kill(signal.SIGINT))
            for process in launcher.procs:
                process.join()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning would leave it ignored
        elif isinstance(exception, ProcessExitedException) and exception.exit_code == INTERRUPTED:
            raise SystemExit(1) from exception


def launches_processes(trainer: Trainer) -> bool:
    """Whether the processes of a run are started, and waited for, by one that takes no part in it."""
    return isinstance(trainer.strategy.launcher, MultiProcessingLauncher)


def in_main_thread() -> bool:
    """Whether Python lets this thread handle signals."""
    return threading.current_thread() is threading.main_thread()


def exit_interrupted(*_: Any) -> None:
    """Ends the process, for a launcher to see."""
    raise SystemExit(INTERRUPTED)
