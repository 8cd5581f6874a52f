"""Checks that the configured optimizers and schedulers match the checkpoint that restores them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_recall._lightning import EarlyStopping, LearningRateFinder, Trainer, callbacks_of

START_ANEW = (
    "To continue with other settings, start a new training from the checkpoint's weights: --weights FILE in the "
    'command, or module.load_state_dict(torch.load(FILE, weights_only=True)["state_dict"]) and fit without ckpt_path.'
)


@dataclass
class SavedOptimization:
    """What a checkpoint holds of the optimization.

    Attributes:
        settings: `optimization_settings` of the checkpoint's training.
        optimizers: states of the optimizers; None in a checkpoint of weights only.
        accumulations: name of each optimizer -> its accumulate_grad_batches; empty if no gradients are accumulated.
        gradients: name of each parameter -> its accumulated gradient.
        metrics: name of each metric -> its last value.
    """

    settings: dict[str, Any]
    optimizers: list[dict[str, Any]] | None
    accumulations: dict[str, int]
    gradients: dict[str, Tensor]
    metrics: dict[str, Tensor]

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any]) -> "SavedOptimization":
        """Reads a checkpoint, which another module may have saved."""
        accumulated = checkpoint.get("accumulated", {})
        return cls(
            checkpoint.get("optimization_settings", {}),
            checkpoint.get("optimizer_states"),
            accumulated.get("accumulate_grad_batches", {}),
            accumulated.get("gradients", {}),
            checkpoint.get("metrics", {}),
        )

    def restore_gradients(self, module: nn.Module) -> None:
        """Gives the accumulated gradients back to the parameters, and keeps no reference to them."""
        for name, parameter in module.named_parameters():
            if name in self.gradients:
                parameter.grad = self.gradients[name].to(parameter.device)
        self.gradients = {}


def optimization_settings(trainer: Trainer) -> dict[str, Any]:
    """Settings of all optimizers and schedulers before their first step, by name, as a checkpoint can hold them."""
    settings: dict[str, Any] = {}
    for number, optimizer in enumerate(trainer.optimizers):
        prefix = "optimizer" if len(trainer.optimizers) == 1 else f"optimizer {number}"
        settings[prefix] = type(optimizer).__name__
        groups = [{**group, "lr": group.get("initial_lr", group["lr"])} for group in optimizer.param_groups]
        for option in sorted({option for group in groups for option in group} - {"params", "initial_lr"}):
            values = [comparable(group.get(option)) for group in groups]
            settings[f"{prefix}'s {option}"] = values[0] if all(value == values[0] for value in values) else values
    for number, config in enumerate(trainer.lr_scheduler_configs):
        prefix = "scheduler" if len(trainer.lr_scheduler_configs) == 1 else f"scheduler {number}"
        settings |= scheduler_settings(config.scheduler.state_dict(), prefix)
        settings[prefix] = type(config.scheduler).__name__
        settings |= {f"{prefix}'s interval": config.interval, f"{prefix}'s frequency": config.frequency}
    return settings


def scheduler_settings(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Public numbers and strings in a scheduler's state_dict, including nested schedulers."""
    settings = {f"{prefix}'s {name}": comparable(value) for name, value in state.items() if not name.startswith("_")}
    settings.pop(f"{prefix}'s base_lrs", None)  # the optimizer's
    settings[f"{prefix}'s milestones"] = comparable(state.get("milestones", state.get("_milestones")))
    for number, part in enumerate(state.get("_schedulers", [])):
        settings |= scheduler_settings(part, f"{prefix}'s part {number}")
    return settings


def comparable(value: Any) -> Any:
    """Converts numbers, strings and nested containers to plain Python; None for anything else."""
    if isinstance(value, dict):
        return {str(key): comparable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(part) for part in value]
    if hasattr(value, "tolist"):  # torch's and numpy's numbers
        return comparable(value.tolist())
    return value if isinstance(value, bool | int | float | str) else None


def check_settings(saved: dict[str, Any], trainer: Trainer) -> None:
    """Compares the configured optimizers and schedulers with those of the checkpoint to resume from.

    Args:
        saved: `optimization_settings` of the checkpoint's training; empty if it saved none: nothing is compared.
        trainer: after configure_optimizers and before the checkpoint is restored.

    Raises:
        ValueError: if they differ, since the checkpoint's would be used.
    """
    now = optimization_settings(trainer)
    different = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    classes = [name for name in different if "'s " not in name]  # a different class also has different options
    options = [name for name in different if name in saved and name in now]  # another release of torch may add some
    names = (classes or options)[:4]
    if saved and names:
        differences = [f"{name} {saved.get(name, 'none')} and not {now.get(name, 'none')}" for name in names]
        raise ValueError(
            f"The checkpoint's training has {', '.join(differences)}. A resumed training keeps the optimizer and the "
            f"schedule of its checkpoint: set these values as they were. {START_ANEW}"
        )


def check_no_finder(trainer: Trainer) -> None:
    """Raises ValueError if LearningRateFinder is used when resuming, because Lightning then ignores the checkpoint."""
    finds = any(isinstance(callback, LearningRateFinder) for callback in callbacks_of(trainer))
    of_finder = Path(trainer.ckpt_path or "").name.startswith(".lr_find")  # what the finder itself saves and loads
    if trainer.state.fn == "fit" and finds and not of_finder:
        raise ValueError(
            "LearningRateFinder would train with a new optimizer, from the first epoch: remove it to resume, or leave "
            "out ckpt_path."
        )


def check_callbacks(states: dict[str, Any] | None, trainer: Trainer | None) -> None:
    """Checks for LearningRateFinder, and for a setting that Lightning silently restores: the patience of EarlyStopping.

    Args:
        states: of the checkpoint's callbacks.
        trainer: before its callbacks are restored; None in `load_from_checkpoint`, which restores none.

    Raises:
        ValueError: if there is a LearningRateFinder, or the patience differs.
    """
    if trainer is None:
        return
    check_no_finder(trainer)
    stoppings = [part for part in callbacks_of(trainer) if isinstance(part, EarlyStopping)]
    for stopping in stoppings if trainer.state.fn == "fit" else []:
        saved = (states or {}).get(stopping.state_key, {}).get("patience", stopping.patience)
        if saved != stopping.patience:
            raise ValueError(
                f"EarlyStopping on {stopping.monitor!r} has patience={saved} in the checkpoint, and not "
                f"{stopping.patience}. A resumed training keeps that of its checkpoint: set patience={saved}. "
                f"{START_ANEW}"
            )


def check_names(before: list[str], now: list[str]) -> None:
    """Raises ValueError if a name in the checkpoint's optimizer_settings is missing now.

    Args:
        before: names of the checkpoint's optimizers; "" for optimizers that share each loss.
        now: the same of this training.
    """
    if not set(before) <= set(now):
        saved, configured = (names if any(names) else "no names" for names in (before, now))
        raise ValueError(
            f"The checkpoint's training has {saved} in optimizer_settings, and this one {configured}: keep the names. "
            f"{START_ANEW}"
        )


def check_accumulation(before: dict[str, int], now: dict[str, int]) -> None:
    """Raises ValueError if the checkpoint holds accumulated gradients and accumulate_grad_batches has changed.

    Args:
        before: name of each optimizer -> its accumulate_grad_batches in the checkpoint; empty without such gradients.
        now: the same of this training.
    """
    for name, batches in before.items():
        if now.get(name) != batches:
            of_optimizer = f" of {name}" if name else ""
            raise ValueError(
                f"The checkpoint was saved during gradient accumulation with accumulate_grad_batches={batches}"
                f"{of_optimizer}: resume with that number, not {now.get(name)}, or from the end of an epoch."
            )


def check_parameters(states: list[dict[str, Any]] | None, trainer: Trainer) -> None:
    """Raises ValueError unless a checkpoint's optimizers have the same number of parameters as the configured ones.

    Args:
        states: of the checkpoint's optimizers; None if it holds weights only.
        trainer: with the configured optimizers.
    """
    if states is None:
        raise ValueError(f"The checkpoint holds weights only, so that no training can be resumed from it. {START_ANEW}")
    saved = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    now = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    if saved != now:
        raise ValueError(
            f"The optimizer of the checkpoint has {format_parameter_counts(saved)}, that of this training "
            f"{format_parameter_counts(now)}: resume with the same network and parameter groups. {START_ANEW}"
        )


def format_parameter_counts(counts: list[list[int]]) -> str:
    """Number of parameters in each group of each optimizer: "4 + 2 parameters"."""
    return " and ".join(f"{' + '.join(map(str, groups))} parameters" for groups in counts)
