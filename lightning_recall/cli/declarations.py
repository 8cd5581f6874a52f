"""What the command needs to know of each task: only the modules in `DECLARATIONS` hold it."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

DECLARATIONS = ("lightning_recall.modules.command",)
"""modules that define the names of `Declaration`; a new task adds its own"""


class Declaration(Protocol):
    """The names that a module in `DECLARATIONS` defines."""

    CLASSES: Sequence[str]
    """modules whose classes a config may name without their path, and that "Did you mean" searches"""

    CALLBACKS: Sequence[str]
    """class paths of callbacks without arguments that every run gets by default"""

    LINKS: Sequence[tuple[str, str, Callable[[Any], Any]]]
    """(source, target, function of the source's value) of settings that follow others"""

    MODEL_FILES: Sequence[str]
    """settings of the model that may be a path, whose `~` is expanded"""

    TRAINING_STATE: Sequence[str]
    """entries of a module's state_dict that --weights does not load, because they belong to one training"""

    BACKBONE_OPTION: str
    """option for the weights of a backbone"""

    MEMORY_REMEDY: str
    """what to do if the GPU's memory runs out; completes a sentence"""

    OVERVIEW: str
    """what `lightning-recall --help` shows first, with examples"""

    SUBCOMMANDS: Mapping[str, str]
    """subcommand -> a sentence on what it does"""

    OPTIONS: Mapping[str, str]
    """example of an option -> what it sets"""

    CLASS_HELP: Sequence[str]
    """options that list the options of a class"""

    def disable_pretrained(self, model: Any) -> None:
        """Changes the model's settings in place so that building it downloads no weights."""

    def evaluates_initial_weights(self, callbacks: Sequence[Any]) -> bool:
        """Whether one of the callbacks, given as settings, needs the weights that the model starts with."""


def declarations() -> list[Declaration]:
    """The modules in `DECLARATIONS`."""
    return [cast(Declaration, import_module(name)) for name in DECLARATIONS]


def import_classes() -> None:
    """Imports the modules whose classes a config may name without their path: `class_path: NAME`."""
    for declaration in declarations():
        for name in declaration.CLASSES:
            import_module(name)


def public_names() -> list[str]:
    """The names that these modules export."""
    modules = [import_module(name) for declaration in declarations() for name in declaration.CLASSES]
    return [name for module in modules for name in getattr(module, "__all__", ())]


def default_callbacks() -> list[Any]:
    """The callbacks that every run gets by default, each once."""
    paths = dict.fromkeys(path for declaration in declarations() for path in declaration.CALLBACKS)
    made = []
    for path in paths:
        module, _, name = path.rpartition(".")
        made.append(getattr(import_module(module), name)())
    return made


def expand_model_files(model: Any) -> None:
    """Expands `~` in paths among the model's settings, because the shell does not expand it in YAML files.

    Args:
        model: settings of the model; changed in place.
    """
    for path in (path for declaration in declarations() for path in declaration.MODEL_FILES):
        *parents, name = path.split(".")
        settings = model
        for parent in parents:
            settings = settings.get(parent) if hasattr(settings, "get") else None
        if hasattr(settings, "get") and isinstance(settings.get(name), str):
            settings[name] = os.path.expanduser(settings[name])
