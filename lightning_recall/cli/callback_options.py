"""Callbacks that every run of a task has, with options of their own, such as --evaluation.ks."""

import inspect
from collections.abc import Sequence
from typing import Any

from jsonargparse._util import import_object

from lightning_recall._lightning import Callback, LightningArgumentParser, LightningModule
from lightning_recall.cli.options import CommandLine
from lightning_recall.cli.task_options import TaskOptions, imported, task_options


def optional_callbacks(tasks: Sequence[TaskOptions] | None = None) -> dict[str, type[Callback]]:
    """Name of a group of options -> class of the callback that they set, for some tasks or for all."""
    tasks = task_options() if tasks is None else tasks
    return {name: imported(path) for task in tasks for name, path in task.EVALUATION.items()}


def add_callback_options(parser: LightningArgumentParser) -> None:
    """Adds the options of these callbacks."""
    for name, cls in optional_callbacks().items():
        parser.add_class_arguments(cls, name)


def share_settings(config: Any, args: Sequence[str]) -> None:
    """Makes the options of a callback and its own entry in trainer.callbacks say the same.

    An option on the command line, or one that differs from its default, sets the entry; the entry sets the others.

    Args:
        config: settings of the subcommand; changed in place.
        args: the arguments of the command.
    """
    options = CommandLine(args).options
    for name, cls in optional_callbacks().items():
        defaults = {key: parameter.default for key, parameter in inspect.signature(cls).parameters.items()}
        entries = [entry for entry in callback_settings(config) if issubclass(import_object(entry["class_path"]), cls)]
        for entry in entries:
            for key, value in vars(config[name]).items():
                if key not in entry["init_args"]:
                    continue
                if f"{name}.{key}" in options or without_tuples(value) != without_tuples(defaults[key]):
                    entry["init_args"][key] = value
                else:
                    config[name][key] = entry["init_args"][key]


def callback_settings(config: Any) -> list[Any]:
    """Settings of the callbacks in trainer.callbacks, each with `class_path` and `init_args`."""
    settings = config.trainer.callbacks or []
    return settings if isinstance(settings, list) else [settings]


def evaluation_settings(config: Any) -> list[Any]:
    """Settings of all callbacks, each with `init_args`."""
    return [
        *callback_settings(config),
        *({"init_args": config[name]} for name in optional_callbacks() if name in config),
    ]


def scores_start_of_checkpoint(subcommand: str, config: Any) -> bool:
    """Whether a test of a checkpoint also scores the weights that its training started from."""
    if subcommand != "test" or not config.ckpt_path or config.weights:
        return False
    return any(task.evaluates_initial_weights(evaluation_settings(config)) for task in task_options())


def without_tuples(value: Any) -> Any:
    """A tuple as a list, since settings hold lists."""
    return list(value) if isinstance(value, tuple) else value


def with_optional(callbacks: Any, built: Any, module: LightningModule) -> list[Callback]:
    """The callbacks of trainer.callbacks, after those of the options that it lacks.

    Args:
        callbacks: callbacks of trainer.callbacks: a list, one or None.
        built: what the options built: name of a group of options -> callback.
        module: a module of a task gets the callbacks of this task; other modules get none.
    """
    given = callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
    tasks = [task for task in task_options() if isinstance(module, imported(task.MODULE))]
    callbacks_of_task = optional_callbacks(tasks)
    missing = [name for name, cls in callbacks_of_task.items() if not any(isinstance(c, cls) for c in given)]
    return [*(built[name] for name in missing), *given]
