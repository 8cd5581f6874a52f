"""Saves a resumable checkpoint on Ctrl-C."""

import os
import signal
import threading
import time
from typing import Any

from torch.multiprocessing.spawn import ProcessExitedException

from lightning_recall._lightning import Callback, LightningModule, MultiProcessingLauncher, Trainer, rank_zero_info
from lightning_recall.callbacks.output import end_progress_bar, output_path, print_line

EXIT_CODE_INTERRUPTED = 130  # exit code of an interrupted process that a launcher started: 128 + SIGINT
DEBOUNCE_SECONDS = 1.0  # a launched process gets each Ctrl-C twice, from the terminal and from the launcher


class InterruptCheckpoint(Callback):
    """Ctrl-C (SIGINT) stops training after the current batch, with a checkpoint that resumes it exactly.

    The checkpoint is `checkpoints/interrupted.ckpt` in the run's folder. A second Ctrl-C exits immediately without
    saving. With several processes, any process, including the launcher, may receive the signal: all stop after the same
    batch, and the exit code is 1. Outside the main thread, where Python does not handle signals, the callback does
    nothing.

    With strategies that start their processes from Python (`ddp_fork`, `ddp_spawn`, `ddp_notebook`), validation, test
    and prediction also end if one process receives SIGINT; without this callback Lightning hangs.

    `lightning-recall` adds it to every run.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self.requested_at = 0.0
        self.message = ""  # how to resume
        self.process_id = 0
        self.previous_handler: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes launched processes exit with code 130 on SIGINT.

        The launcher does not notice a KeyboardInterrupt in them.
        """
        if launches_processes(trainer) and in_main_thread():
            signal.signal(signal.SIGINT, exit_on_sigint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the SIGINT handler."""
        self.stop_requested = False
        self.process_id = os.getpid()
        if in_main_thread():
            self.previous_handler = signal.signal(signal.SIGINT, self.request_stop)

    def request_stop(self, *_: Any) -> None:
        """Handles SIGINT during training."""
        if os.getpid() != self.process_id:
            return  # a worker of a dataloader, which has inherited the handler
        if (
            self.stop_requested
            and self.previous_handler is exit_on_sigint
            and time.monotonic() < self.requested_at + DEBOUNCE_SECONDS
        ):
            return
        if self.stop_requested:
            raise SystemExit(EXIT_CODE_INTERRUPTED) if self.previous_handler is exit_on_sigint else KeyboardInterrupt
        self.stop_requested, self.requested_at = True, time.monotonic()
        rank_zero_info(
            "Stopping after this batch and saving a checkpoint. Press Ctrl-C again to stop now without saving."
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops if any process received SIGINT."""
        if not trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False):
            return
        path = output_path(trainer, "checkpoints") / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self.message = (
            f"Saved after step {trainer.global_step:,}. To resume, add to the same command: --ckpt_path {path}"
        )
        if launches_processes(trainer):  # `on_exception` is called in the launcher only
            self.print_message(trainer)
            raise SystemExit(EXIT_CODE_INTERRUPTED)
        raise KeyboardInterrupt

    def print_message(self, trainer: Trainer) -> None:
        """Prints how to resume, once, below the progress bar."""
        if self.message and trainer.is_global_zero:
            end_progress_bar(trainer)
            print_line(self.message)
        self.message = ""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the previous SIGINT handler."""
        if self.previous_handler is not None:
            signal.signal(signal.SIGINT, self.previous_handler)
            self.previous_handler = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Prints how to resume and restores the handler; a launcher forwards SIGINT to its processes and waits."""
        self.print_message(trainer)  # after Lightning's own line about the interrupt
        self.on_train_end(trainer, pl_module)
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, MultiProcessingLauncher):
            return
        if isinstance(exception, KeyboardInterrupt):  # raised in the launcher process
            launcher.kill(signal.SIGINT)
            signal.signal(signal.SIGINT, lambda *_: launcher.kill(signal.SIGINT))
            for process in launcher.procs:
                process.join()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning would leave it ignored
        elif isinstance(exception, ProcessExitedException) and exception.exit_code == EXIT_CODE_INTERRUPTED:
            raise SystemExit(1) from exception


def launches_processes(trainer: Trainer) -> bool:
    """Whether a separate launcher process starts the processes of a run and waits for them."""
    return isinstance(trainer.strategy.launcher, MultiProcessingLauncher)


def in_main_thread() -> bool:
    """Whether Python lets this thread handle signals."""
    return threading.current_thread() is threading.main_thread()


def exit_on_sigint(*_: Any) -> None:
    """Exits with the code that the launcher checks."""
    raise SystemExit(EXIT_CODE_INTERRUPTED)
