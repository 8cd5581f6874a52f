"""Monitors of EarlyStopping and ModelCheckpoint, compared before training with what will be logged."""

import difflib
from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, LambdaCallback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn

KNOWN_PACKAGES = ("lightning_recall", "pytorch_lightning")
ALWAYS_KNOWN = ("epoch", "step")  # to ModelCheckpoint


def check_monitors(trainer: Trainer, logged: Sequence[str], prefixes: Sequence[str]) -> None:
    """Compares every monitor with the keys that will be logged.

    Where a module or callback of another package may log, too, the keys are not all known: then a monitor is warned of
    if it resembles a known key.

    Args:
        trainer: is about to train, and has set up its dataloaders.
        logged: keys that the module logs in training.
        prefixes: what keys start with that it may log besides.

    Raises:
        ValueError: for a monitor that is not logged, or waits for a validation that does not take place.
    """
    set_up = trainer.val_dataloaders is not None  # else the first validation is yet to do so
    validates = trainer.enable_validation and (not set_up or sum(map(float, as_list(trainer.num_val_batches))) > 0)
    scoring = callbacks_with(trainer, "logged_keys") if validates else []
    validated = [callback.logged_keys(trainer) for callback in scoring]
    if any(keys is None for keys in validated):
        prefixes = [*prefixes, "val/"]
    known = [*logged, *(key for keys in validated for key in keys or ())]
    for callback in callbacks_with(trainer, "monitor"):
        monitor = callback.monitor
        lenient = not isinstance(callback, EarlyStopping | ModelCheckpoint) or not getattr(callback, "strict", True)
        if lenient or monitor is None or monitor in (*known, *ALWAYS_KNOWN) or monitor.startswith(tuple(prefixes)):
            continue
        what = f"{type(callback).__name__} monitors {monitor!r}"
        if monitor.startswith("val/") and not validates:
            refuse_without_validation(trainer, callback, what)
        else:
            refuse(trainer, monitor, what, known)


def refuse(trainer: Trainer, monitor: str, what: str, known: list[str]) -> None:
    """Raises ValueError for a monitor that is not known; warns if somebody else may log it, and it looks mistyped."""
    alike = difflib.get_close_matches(monitor, known, 1)
    hint = f" Did you mean {alike[0]!r}?" if alike else ""
    if all_known(trainer):
        if monitor.startswith("val/") and not callbacks_with(trainer, "logged_keys"):
            hint = " Add RetrievalEvaluation to the callbacks, which logs the scores of the validation."
        raise ValueError(f"{what}, which is not logged.{hint} Logged are: {', '.join(known)}.")
    if difflib.get_close_matches(monitor, known, 1, cutoff=0.9):
        rank_zero_warn(f"{what}, which RetrievalModule and RetrievalEvaluation do not log.{hint}")


def refuse_without_validation(trainer: Trainer, callback: Any, what: str) -> None:
    """Raises ValueError for a monitor of a validation that never runs; warns where the last checkpoint is kept."""
    if not all_known(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning
        return
    if getattr(callback, "save_last", None):
        rank_zero_warn(f"{what}, but there is no validation: only the end of the training is saved.")
        return
    raise ValueError(
        f"{what}, but there is no validation: set classes aside (val_classes above 0), leave limit_val_batches as it "
        "is, or remove the monitor."
    )


def all_known(trainer: Trainer) -> bool:
    """Whether nothing but this package and Lightning can log."""
    logging = [trainer.lightning_module, *trainer.callbacks]  # type: ignore[attr-defined]  # set by Lightning
    free = (LambdaCallback, LearningRateMonitor)
    return all(type(part).__module__.startswith(KNOWN_PACKAGES) and not isinstance(part, free) for part in logging)


def callbacks_with(trainer: Trainer, name: str) -> list[Any]:
    """The Trainer's callbacks that have an attribute."""
    return [callback for callback in trainer.callbacks if hasattr(callback, name)]  # type: ignore[attr-defined]  # set by Lightning


def as_list(number: Any) -> list[Any]:
    """A number, or several, as a list."""
    return list(number) if isinstance(number, Sequence) else [number]
