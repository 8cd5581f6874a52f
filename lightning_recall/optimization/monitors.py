"""Checks before training that monitored metrics will be logged."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from lightning_recall._lightning import (
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    Trainer,
    callbacks_of,
    hooks_without_logging,
    rank_zero_warn,
)

KNOWN_PACKAGES = (
    *("lightning_recall", "lightning", "pytorch_lightning", "lightning_fabric", "torch", "builtins"),
    "huggingface_hub",  # its mixin saves modules
)
ALWAYS_KNOWN = ("epoch", "step")  # ModelCheckpoint always accepts these
NON_LOGGING_HOOKS = hooks_without_logging() - {"on_validation_end"}
"""hooks in which Lightning does not allow `log`; on_validation_end is excluded, because callbacks write to
trainer.callback_metrics there"""


@dataclass(frozen=True)
class LoggedMetrics:
    """Metrics that a module logs in training, and the callback that logs validation scores.

    Args:
        keys: keys that the module logs in training.
        prefixes: prefixes of further keys that the module may log.
        lower_is_better: keys for which lower is better.
        higher_is_better: prefixes of training keys for which higher is better.
        evaluation: name of the callback that logs validation scores, for messages.
    """

    keys: Sequence[str]
    prefixes: Sequence[str] = ()
    lower_is_better: Sequence[str] = ()
    higher_is_better: Sequence[str] = ()
    evaluation: str = "an evaluation callback"


def check_monitors(trainer: Trainer, logged: LoggedMetrics) -> None:
    """Checks each monitor against the logged keys, and its mode against the metric's direction.

    A callback's method `logged_keys(trainer)` returns the keys of its validation scores (higher is better), or None if
    they are not known before the first validation.

    If third-party modules or callbacks may log, unknown monitors only give a warning, and only if they resemble a known
    key.

    Args:
        trainer: the Trainer, at the start of training.
        logged: metrics that its module logs.

    Raises:
        ValueError: for a monitor that is not logged, that needs a validation which does not run, or that has the wrong
            mode.
    """
    set_up = trainer.val_dataloaders is not None  # otherwise they are set up in the first validation
    validates = trainer.enable_validation and (not set_up or sum(map(float, as_list(trainer.num_val_batches))) > 0)
    evaluation_callbacks = callbacks_with(trainer, "logged_keys") if validates else []
    logged_keys = [callback.logged_keys(trainer) for callback in evaluation_callbacks]
    scores = [key for keys in logged_keys for key in keys or ()]
    callbacks_with_unknown_keys = [
        callback for callback, keys in zip(evaluation_callbacks, logged_keys, strict=True) if keys is None
    ]
    check_modes(trainer, logged, scores, callbacks_with_unknown_keys)
    prefixes = [*logged.prefixes, "val/"] if callbacks_with_unknown_keys else [*logged.prefixes]
    if any(isinstance(callback, LearningRateMonitor) for callback in callbacks_of(trainer)):
        prefixes += ["lr-", *(config.name for config in trainer.lr_scheduler_configs if config.name)]
    known = [*logged.keys, *scores]
    for callback in callbacks_with(trainer, "monitor"):
        monitor = callback.monitor
        lenient = not isinstance(callback, EarlyStopping | ModelCheckpoint) or not getattr(callback, "strict", True)
        if lenient or monitor is None or monitor in (*known, *ALWAYS_KNOWN) or monitor.startswith(tuple(prefixes)):
            continue
        description = f"{type(callback).__name__} monitors {monitor!r}"
        if monitor.startswith("val/") and not validates:
            raise_or_warn_without_validation(trainer, callback, description)
        else:
            raise_or_warn_unknown_monitor(trainer, monitor, description, known, logged.evaluation)


def check_modes(
    trainer: Trainer, logged: LoggedMetrics, scores: Sequence[str], callbacks_with_unknown_keys: Sequence[Any]
) -> None:
    """Raises ValueError if a mode is not "max" for scores, or not "min" for keys for which lower is better.

    Args:
        trainer: its callbacks and schedulers are checked.
        logged: metrics that its module logs.
        scores: keys of validation scores.
        callbacks_with_unknown_keys: callbacks that will log scores under "val/", with keys that are not known yet.
    """
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for callback_or_scheduler in (*callbacks_of(trainer), *schedulers):
        monitor, mode = (
            getattr(callback_or_scheduler, "monitor", None) or "",
            getattr(callback_or_scheduler, "mode", None),
        )
        name = monitor.rpartition("/")[2]
        is_score = any(
            only_known_code_logs(trainer) or name.startswith(tuple(callback.scores))
            for callback in callbacks_with_unknown_keys
        )
        higher = monitor in scores or (is_score and monitor.startswith("val/"))
        higher = higher or monitor.startswith(tuple(logged.higher_is_better))
        right = "max" if higher else "min" if monitor in logged.lower_is_better else mode
        if hasattr(callback_or_scheduler, "monitor") and mode in ("min", "max") and mode != right:
            default = ", Lightning's default" if mode == "min" else ""
            raise ValueError(
                f'{type(callback_or_scheduler).__name__} monitors {monitor!r} with mode="{mode}"{default}, but '
                f'{"larger" if higher else "smaller"} is better: set mode="{right}".'
            )


def raise_or_warn_unknown_monitor(
    trainer: Trainer, monitor: str, description: str, known: list[str], evaluation: str
) -> None:
    """Raises ValueError for an unknown monitor; warns if third-party code may log it and it resembles a known key.

    Args:
        trainer: its module and callbacks may log.
        monitor: the unknown key.
        description: start of the message, such as "EarlyStopping monitors 'x'".
        known: keys that are logged.
        evaluation: name of the callback that logs validation scores.
    """
    alike = difflib.get_close_matches(monitor, known, 1)
    hint = missing_cutoff_hint(monitor, known, evaluation) or (f" Did you mean {alike[0]!r}?" if alike else "")
    if only_known_code_logs(trainer):
        has_scores = callbacks_with(trainer, "logged_keys") or any(key.startswith("val/") for key in known)
        if monitor.startswith("val/") and not has_scores:
            hint = f" Add {evaluation} to the callbacks, which logs validation scores."
        raise ValueError(f"{description}, which is not logged.{hint} Logged keys: {', '.join(known)}.")
    if difflib.get_close_matches(monitor, known, 1, cutoff=0.9):
        rank_zero_warn(f"{description}, which is not among the known keys.{hint} Known keys: {', '.join(known)}.")


def missing_cutoff_hint(monitor: str, known: Sequence[str], evaluation: str) -> str:
    """Hint naming the `ks` needed to log this cut-off; "" if the monitor is not an @k score."""
    score, _, k = monitor.rpartition("@")
    ks = {int(key.rpartition("@")[2]) for key in known if re.fullmatch(re.escape(score) + r"@\d+", key)}
    if not (ks and re.fullmatch("[1-9][0-9]*", k) and score.startswith("val/")):
        return ""
    return f" {evaluation} logs it with ks={sorted({*ks, int(k)})}."


def raise_or_warn_without_validation(trainer: Trainer, callback: Any, description: str) -> None:
    """Raises ValueError if a monitored validation metric is never computed; only warns if save_last is set."""
    if not only_known_code_logs(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning
        return
    if getattr(callback, "save_last", None):
        rank_zero_warn(f"{description}, but there is no validation: only the last checkpoint is saved.")
        return
    raise ValueError(
        f"{description}, but there is no validation: hold out validation data (val_classes above 0), do not set "
        "limit_val_batches to 0, or remove the monitor."
    )


def only_known_code_logs(trainer: Trainer) -> bool:
    """Whether only this package and Lightning can log metrics."""
    hook_owners = [trainer.lightning_module, *callbacks_of(trainer)]
    return not any(isinstance(owner, LambdaCallback) or may_log(type(owner)) for owner in hook_owners)


def may_log(kind: type) -> bool:
    """Whether the class, or a base class from another package, defines a method that could log."""
    others = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in KNOWN_PACKAGES]
    defined = [(name, value) for base in others for name, value in vars(base).items()]
    return any(
        isinstance(value, FunctionType) and name not in NON_LOGGING_HOOKS and not name.startswith("__")
        for name, value in defined
    )


def callbacks_with(trainer: Trainer, name: str) -> list[Any]:
    """The Trainer's callbacks that have an attribute."""
    return [callback for callback in callbacks_of(trainer) if hasattr(callback, name)]


def as_list(value: Any) -> list[Any]:
    """Converts a number or a sequence of numbers to a list."""
    return list(value) if isinstance(value, Sequence) else [value]
