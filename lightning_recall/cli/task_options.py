"""Task-specific settings of the command, defined by the modules in `TASK_MODULES`."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

TASK_MODULES = ("lightning_recall.modules.command",)
"""modules that implement `TaskOptions`, one per task"""


class TaskOptions(Protocol):
    """The names that a module in `TASK_MODULES` defines."""

    CLASS_MODULES: Sequence[str]
    """modules whose classes can be given by name alone; also searched for "Did you mean" hints"""

    CALLBACKS: Sequence[str]
    """class paths of callbacks without arguments that every run gets by default"""

    LINKS: Sequence[tuple[str, str, Callable[[Any], Any]]]
    """linked settings: (source, target, function from the source's value to the target's)"""

    MODEL_FILES: Sequence[str]
    """model settings that may hold a path; `~` in them is expanded"""

    TRAINING_STATE: Sequence[str]
    """entries of a module's state_dict that --weights does not load, because they belong to one training"""

    BACKBONE_OPTION: str
    """option for the weights of a backbone"""

    MEMORY_REMEDY: str
    """what to do if the GPU's memory runs out; completes a sentence"""

    OVERVIEW: str
    """start of `lightning-recall --help`, with examples"""

    SUBCOMMANDS: Mapping[str, str]
    """subcommand -> a sentence on what it does"""

    OPTIONS: Mapping[str, str]
    """example of an option -> what it sets"""

    CLASS_HELP: Sequence[str]
    """--*.help options that print the arguments of a class"""

    def disable_pretrained(self, model: Any) -> None:
        """Changes the model's settings in place so that building it downloads no weights."""

    def evaluates_initial_weights(self, callbacks: Sequence[Any]) -> bool:
        """Whether one of the callbacks, given as settings, needs the initial weights of the model."""


def task_options() -> list[TaskOptions]:
    """The modules in `TASK_MODULES`."""
    return [cast(TaskOptions, import_module(name)) for name in TASK_MODULES]


def import_classes() -> None:
    """Imports the modules in CLASS_MODULES; a config can then name their classes without a path: `class_path: NAME`."""
    for task in task_options():
        for name in task.CLASS_MODULES:
            import_module(name)


def public_names() -> list[str]:
    """Public names of all modules in CLASS_MODULES."""
    modules = [import_module(name) for task in task_options() for name in task.CLASS_MODULES]
    return [name for module in modules for name in getattr(module, "__all__", ())]


def default_callbacks() -> list[Any]:
    """The callbacks that every run gets by default, each once."""
    paths = dict.fromkeys(path for task in task_options() for path in task.CALLBACKS)
    callbacks = []
    for path in paths:
        module, _, name = path.rpartition(".")
        callbacks.append(getattr(import_module(module), name)())
    return callbacks


def expand_model_files(model: Any) -> None:
    """Expands `~` in paths among the model's settings, because the shell does not expand it in YAML files.

    Args:
        model: settings of the model; changed in place.
    """
    for path in (path for task in task_options() for path in task.MODEL_FILES):
        *parents, name = path.split(".")
        settings = model
        for parent in parents:
            settings = settings.get(parent) if hasattr(settings, "get") else None
        if hasattr(settings, "get") and isinstance(settings.get(name), str):
            settings[name] = os.path.expanduser(settings[name])
