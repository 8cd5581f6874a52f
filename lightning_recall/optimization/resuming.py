"""Checks that the configured optimizers and schedulers match the checkpoint that restores them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_recall._lightning import BaseFinetuning, EarlyStopping, LearningRateFinder, Trainer, callbacks_of
from lightning_recall.optimization.optimizer_settings import OptimizerSettings

NEW_TRAINING_HINT = (
    "To continue with other settings, start a new training from the checkpoint's weights: --weights FILE in the "
    'command, or module.load_state_dict(torch.load(FILE, weights_only=True)["state_dict"]) and fit without ckpt_path.'
)


@dataclass
class SavedOptimization:
    """Optimization state saved in a checkpoint.

    Attributes:
        settings: optimizer and scheduler settings of the checkpoint's training.
        optimizers: states of the optimizers; None if the checkpoint holds weights only.
        accumulate_grad_batches: optimizer name -> accumulate_grad_batches; empty if no gradients are accumulated.
        gradients: parameter name -> accumulated gradient.
        metrics: metric name -> last value.
    """

    settings: dict[str, Any]
    optimizers: list[dict[str, Any]] | None
    accumulate_grad_batches: dict[str, int]
    gradients: dict[str, Tensor]
    metrics: dict[str, Tensor]

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any]) -> "SavedOptimization":
        """Reads a checkpoint; entries that are missing, as in a checkpoint of another module, are empty."""
        accumulated = checkpoint.get("accumulated", {})
        return cls(
            checkpoint.get("optimization_settings", {}),
            checkpoint.get("optimizer_states"),
            accumulated.get("accumulate_grad_batches", {}),
            accumulated.get("gradients", {}),
            checkpoint.get("metrics", {}),
        )

    def restore_gradients(self, module: nn.Module) -> None:
        """Restores the accumulated gradients of the parameters, and drops this reference to them."""
        for name, parameter in module.named_parameters():
            if name in self.gradients:
                parameter.grad = self.gradients[name].to(parameter.device)
        self.gradients = {}


def compare_with_checkpoint(
    trainer: Trainer, saved: SavedOptimization | None, settings: dict[str, OptimizerSettings]
) -> dict[str, Any]:
    """Compares the optimizers with those of the checkpoint, before Lightning restores it.

    Args:
        trainer: the Trainer, with its optimizers.
        saved: what the checkpoint holds; None: the training does not resume.
        settings: name of each optimizer -> its settings.

    Returns:
        The settings of optimizers and schedulers, for the next checkpoint. Empty with a BaseFinetuning, which adds
        parameter groups during training: these are not compared.

    Raises:
        ValueError: if they differ.
    """
    has_finetuning = any(isinstance(callback, BaseFinetuning) for callback in callbacks_of(trainer))
    if saved is not None:
        check_accumulation(saved.accumulate_grad_batches, settings)
        if not has_finetuning:
            check_settings(saved.settings, trainer)
            check_parameters(saved.optimizers, trainer)
        saved.optimizers = None  # frees their memory
    return {} if has_finetuning else optimizer_and_scheduler_settings(trainer)


def optimizer_and_scheduler_settings(trainer: Trainer) -> dict[str, Any]:
    """Initial settings of all optimizers and schedulers: name -> value, as plain Python types."""
    settings: dict[str, Any] = {}
    for index, optimizer in enumerate(trainer.optimizers):
        prefix = "optimizer" if len(trainer.optimizers) == 1 else f"optimizer {index}"
        settings[prefix] = type(optimizer).__name__
        groups = [{**group, "lr": group.get("initial_lr", group["lr"])} for group in optimizer.param_groups]
        for option in sorted({option for group in groups for option in group} - {"params", "initial_lr"}):
            values = [comparable(group.get(option)) for group in groups]
            settings[f"{prefix}'s {option}"] = values[0] if all(value == values[0] for value in values) else values
    for index, config in enumerate(trainer.lr_scheduler_configs):
        prefix = "scheduler" if len(trainer.lr_scheduler_configs) == 1 else f"scheduler {index}"
        settings |= scheduler_settings(config.scheduler.state_dict(), prefix)
        settings[prefix] = type(config.scheduler).__name__
        settings |= {f"{prefix}'s interval": config.interval, f"{prefix}'s frequency": config.frequency}
    return settings


def scheduler_settings(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Public numbers and strings in a scheduler's state_dict, including nested schedulers."""
    settings = {f"{prefix}'s {name}": comparable(value) for name, value in state.items() if not name.startswith("_")}
    settings.pop(f"{prefix}'s base_lrs", None)  # base_lrs repeats the optimizer's learning rates
    settings[f"{prefix}'s milestones"] = comparable(state.get("milestones", state.get("_milestones")))
    for index, nested in enumerate(state.get("_schedulers", [])):
        settings |= scheduler_settings(nested, f"{prefix}'s part {index}")
    return settings


def comparable(value: Any) -> Any:
    """Converts numbers, strings and nested containers to plain Python; None for anything else."""
    if isinstance(value, dict):
        return {str(key): comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if hasattr(value, "tolist"):  # torch's and numpy's numbers
        return comparable(value.tolist())
    return value if isinstance(value, bool | int | float | str) else None


def check_settings(saved: dict[str, Any], trainer: Trainer) -> None:
    """Compares the configured optimizers and schedulers with those of the checkpoint to resume from.

    Args:
        saved: optimizer and scheduler settings of the checkpoint's training; if empty, nothing is compared.
        trainer: the Trainer, after configure_optimizers and before it restores the checkpoint.

    Raises:
        ValueError: if they differ, because the checkpoint's settings would be used.
    """
    now = optimizer_and_scheduler_settings(trainer)
    different = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    classes = [name for name in different if "'s " not in name]  # a different class also has different options
    options = [name for name in different if name in saved and name in now]  # another release of torch may add some
    names = (classes or options)[:4]
    if saved and names:
        differences = [f"{name} is {saved.get(name, 'none')}, but now {now.get(name, 'none')}" for name in names]
        raise ValueError(
            f"In the checkpoint, {'; '.join(differences)}. A resumed training keeps the optimizer and the schedule of "
            f"its checkpoint: restore the previous values. {NEW_TRAINING_HINT}"
        )


def check_no_finder(trainer: Trainer) -> None:
    """Raises ValueError if LearningRateFinder is used when resuming, because Lightning then ignores the checkpoint."""
    has_finder = any(isinstance(callback, LearningRateFinder) for callback in callbacks_of(trainer))
    is_finder_checkpoint = Path(trainer.ckpt_path or "").name.startswith(".lr_find")  # saved by the finder itself
    if trainer.state.fn == "fit" and has_finder and not is_finder_checkpoint:
        raise ValueError(
            "LearningRateFinder would train with a new optimizer, from the first epoch: remove it to resume, or leave "
            "out ckpt_path."
        )


def check_callbacks(states: dict[str, Any] | None, trainer: Trainer | None) -> None:
    """Checks for LearningRateFinder, and for a setting that Lightning silently restores: the patience of EarlyStopping.

    Args:
        states: callback states in the checkpoint.
        trainer: the Trainer, before it restores its callbacks; None in `load_from_checkpoint`, which restores none.

    Raises:
        ValueError: if there is a LearningRateFinder, or the patience differs.
    """
    if trainer is None:
        return
    check_no_finder(trainer)
    early_stopping_callbacks = [callback for callback in callbacks_of(trainer) if isinstance(callback, EarlyStopping)]
    for callback in early_stopping_callbacks if trainer.state.fn == "fit" else []:
        saved = (states or {}).get(callback.state_key, {}).get("patience", callback.patience)
        if saved != callback.patience:
            raise ValueError(
                f"EarlyStopping on {callback.monitor!r} has patience={saved} in the checkpoint, but "
                f"{callback.patience} now. A resumed training keeps the patience of its checkpoint: set "
                f"patience={saved}. {NEW_TRAINING_HINT}"
            )


def check_names(before: list[str], now: list[str]) -> None:
    """Raises ValueError if a name in the checkpoint's optimizer_settings is missing now.

    Args:
        before: names of the checkpoint's optimizers; "" if optimizer_settings was empty.
        now: names of this training's optimizers.
    """
    if not set(before) <= set(now):
        saved, configured = (names if any(names) else "no names" for names in (before, now))
        raise ValueError(
            f"In the checkpoint, optimizer_settings has {saved}, but now {configured}: use the same names. "
            f"{NEW_TRAINING_HINT}"
        )


def check_accumulation(before: dict[str, int], now: dict[str, OptimizerSettings]) -> None:
    """Raises ValueError if the checkpoint holds accumulated gradients and accumulate_grad_batches has changed.

    Args:
        before: optimizer name -> accumulate_grad_batches in the checkpoint; empty without accumulated gradients.
        now: optimizer name -> settings of this training.
    """
    for name, batches in before.items():
        current = now[name].accumulate_grad_batches if name in now else None
        if current != batches:
            optimizer = f" of {name}" if name else ""
            raise ValueError(
                f"The checkpoint was saved during gradient accumulation with accumulate_grad_batches={batches}"
                f"{optimizer}: resume with that number, not {current}, or from the end of an epoch."
            )


def check_parameters(states: list[dict[str, Any]] | None, trainer: Trainer) -> None:
    """Raises ValueError unless a checkpoint's optimizers have as many parameter tensors as the configured ones.

    Args:
        states: optimizer states in the checkpoint; None if it holds weights only.
        trainer: the Trainer, after configure_optimizers.
    """
    if states is None:
        raise ValueError(
            f"The checkpoint holds weights only, so training cannot be resumed from it. {NEW_TRAINING_HINT}"
        )
    saved = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    now = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    if saved != now:
        raise ValueError(
            f"The checkpoint's optimizer has {format_parameter_counts(saved)}, but this run's has "
            f"{format_parameter_counts(now)}: resume with the same network and parameter groups. {NEW_TRAINING_HINT}"
        )


def format_parameter_counts(counts: list[list[int]]) -> str:
    """Number of parameter tensors in each group of each optimizer: "4 + 2 parameter tensors"."""
    return " and ".join(f"{' + '.join(map(str, groups))} parameter tensors" for groups in counts)
