"""Optimizers and schedulers of a resumed training, which come from its checkpoint whatever the configuration says."""

from pathlib import Path
from typing import Any

from lightning_recall._lightning import EarlyStopping, LearningRateFinder, LightningModule, Trainer, callbacks_of

START_ANEW = (
    "To train on with other settings, start a new training from the checkpoint's weights: --weights FILE in the "
    'command, or module.load_state_dict(torch.load(FILE, weights_only=True)["state_dict"]) and fit without ckpt_path.'
)


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
    """Public numbers and texts in the state of a scheduler, and of those that it holds."""
    own = {f"{prefix}'s {name}": comparable(value) for name, value in state.items() if not name.startswith("_")}
    own.pop(f"{prefix}'s base_lrs", None)  # the optimizer's
    own[f"{prefix}'s milestones"] = comparable(state.get("milestones", state.get("_milestones")))
    for number, part in enumerate(state.get("_schedulers", [])):
        own |= scheduler_settings(part, f"{prefix}'s part {number}")
    return own


def comparable(value: Any) -> Any:
    """A number, text, or nest of them as it is in a checkpoint; None for all else, such as functions."""
    if isinstance(value, dict):
        return {str(key): comparable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(part) for part in value]
    if hasattr(value, "tolist"):  # torch's and numpy's numbers
        return comparable(value.tolist())
    return value if isinstance(value, bool | int | float | str) else None


def check_settings(saved: dict[str, Any], trainer: Trainer) -> None:
    """Compares the optimizers and schedulers that are configured with those of the checkpoint to resume from.

    Args:
        saved: `optimization_settings` of the checkpoint's training.
        trainer: has configured its optimizers, and not yet restored them.

    Raises:
        ValueError: if they differ, since the checkpoint's would be used.
    """
    now = optimization_settings(trainer)
    different = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    classes = [name for name in different if "'s " not in name]  # these have other options, too
    options = [name for name in different if name in saved and name in now]  # another release of torch may add some
    names = (classes or options)[:4]
    if names:
        told = [f"{name} {saved.get(name, 'none')} and not {now.get(name, 'none')}" for name in names]
        raise ValueError(
            f"The checkpoint's training has {', '.join(told)}. A resumed training keeps the optimizer and the schedule "
            f"of its checkpoint: set these values as they were. {START_ANEW}"
        )


def check_no_finder(trainer: Trainer) -> None:
    """Raises ValueError if LearningRateFinder is to run in a resumed training: Lightning then loses the checkpoint."""
    finds = any(isinstance(callback, LearningRateFinder) for callback in callbacks_of(trainer))
    own = Path(trainer.ckpt_path or "").name.startswith(".lr_find")  # what the finder itself saves and loads
    if trainer.state.fn == "fit" and finds and not own:
        raise ValueError(
            "LearningRateFinder would train with a new optimizer, from the first epoch: remove it to resume, or leave "
            "out ckpt_path."
        )


def check_callbacks(states: dict[str, Any] | None, trainer: Trainer) -> None:
    """Compares the settings that Lightning takes from a checkpoint without a word: the patience of EarlyStopping.

    Args:
        states: of the checkpoint's callbacks.
        trainer: has yet to restore its callbacks.

    Raises:
        ValueError: if they differ.
    """
    stoppings = [part for part in callbacks_of(trainer) if isinstance(part, EarlyStopping)]
    for stopping in stoppings if trainer.state.fn == "fit" else []:
        saved = (states or {}).get(stopping.state_key, {}).get("patience", stopping.patience)
        if saved != stopping.patience:
            raise ValueError(
                f"EarlyStopping on {stopping.monitor!r} has patience={saved} in the checkpoint, and not "
                f"{stopping.patience}. A resumed training keeps that of its checkpoint: set patience={saved}. "
                f"{START_ANEW}"
            )


def check_mixup(weights: dict[str, Any], module: LightningModule) -> None:
    """Raises ValueError if a training is resumed with a mixup that was not there, or without one that was."""
    before, now = (any(key.startswith("mixup.") for key in keys) for keys in (weights, module.state_dict()))
    if module.trainer.state.fn == "fit" and before != now:
        raise ValueError(
            f"The checkpoint's training {'has a' if before else 'has no'} mixup, and this one "
            f"{'has none' if before else 'has one'}: resume with the same. To change it, start a new training from the "
            "checkpoint's weights: --weights FILE in the command, or module.load_state_dict(..., strict=False)."
        )


def check_waiting(before: int | None, now: int) -> None:
    """Raises ValueError if gradients wait for a step of `before` batches, and a step has another number of them now."""
    if before not in (None, now):
        raise ValueError(
            f"The checkpoint holds gradients that wait for a step of accumulate_grad_batches={before}: resume with "
            f"that number, not {now}, or from the end of an epoch."
        )


def check_parameters(states: list[dict[str, Any]] | None, trainer: Trainer) -> None:
    """Raises ValueError unless the optimizers of a checkpoint, `states`, are over as many parameters as configured."""
    if states is None:
        raise ValueError(f"The checkpoint holds weights only, so that no training can be resumed from it. {START_ANEW}")
    saved = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    now = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    if saved != now:
        raise ValueError(
            f"The optimizer of the checkpoint has {counted(saved)}, that of this training {counted(now)}: resume with "
            f"the same network, loss and loss_lr. {START_ANEW}"
        )


def counted(sizes: list[list[int]]) -> str:
    """Numbers of parameters in each group of each optimizer, in words."""
    return " and ".join(f"{' + '.join(map(str, groups))} parameters" for groups in sizes)
