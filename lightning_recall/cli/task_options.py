"""Task-specific settings of the command, defined by the modules in `TASK_MODULES`."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from jsonargparse import Namespace

TASK_MODULES = (
    "lightning_recall.modules.command",
    "lightning_recall.segmentation.command",
    "lightning_recall.adaptation.command",
)
"""modules that implement `TaskOptions`, one per task"""


class TaskOptions(Protocol):
    """The names that a module in `TASK_MODULES` defines."""

    NAME: str
    """name of the task in help texts and messages"""

    CLASS_MODULES: Sequence[str]
    """modules whose classes can be given by name alone; also searched for "Did you mean" hints"""

    CALLBACKS: Sequence[str]
    """class paths of callbacks without arguments that every run gets by default"""

    LINKS: Sequence[tuple[str | tuple[str, ...], str, Callable[..., Any]]]
    """linked settings: (source or sources, target, function from the sources' values to the target's)"""

    MODEL_FILES: Sequence[str]
    """names of settings of the model and of the classes in it that may hold a path; `~` in them is expanded"""

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

    CHOICES: Mapping[str, str]
    """last part of an option's name -> pattern of the classes (module.Name) that it takes, for help texts"""

    START: str
    """sentence on which settings to start with, shown if no model or no data are chosen"""

    MODULE: str
    """class path of the task's LightningModule; a run without it gets no callbacks of EVALUATION"""

    OWN_CLASSES: Sequence[str]
    """patterns of the classes (module.Name) that are of no use to the MODULE of another task"""

    EXTRAS: Mapping[str, str]
    """package that users name in class paths -> extra of this package that installs it"""

    EVALUATION: Mapping[str, str]
    """name of a group of options -> class path of a callback that every run gets, and that these options set"""

    def disable_pretrained(self, settings: Any) -> None:
        """Changes the settings of one class of the model in place so that building it downloads no weights."""

    def disable_baselines(self, callbacks: Sequence[Any]) -> None:
        """Changes the callbacks' settings in place so that they need no initial weights."""

    def evaluates_initial_weights(self, callbacks: Sequence[Any]) -> bool:
        """Whether one of the callbacks, given as settings, needs the initial weights of the model."""


def task_options() -> list[TaskOptions]:
    """The modules in `TASK_MODULES`."""
    return [cast(TaskOptions, import_module(name)) for name in TASK_MODULES]


def imported(path: str) -> Any:
    """The object with a path such as package.module.Name."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def tasks_of(cls: Any) -> list[TaskOptions]:
    """The tasks whose LightningModule is a class or one of its bases; all tasks if there are none."""
    tasks = task_options()
    found = [task for task in tasks if isinstance(cls, type) and issubclass(cls, imported(task.MODULE))]
    return found or tasks


def module_names(task: TaskOptions) -> set[str]:
    """Names of the LightningModule of a task and of this package's classes derived from it."""
    classes = [imported(task.MODULE)]
    for cls in classes:
        classes += [each for each in cls.__subclasses__() if each.__module__.startswith("lightning_recall.")]
    return {cls.__name__ for cls in classes}


def import_classes() -> None:
    """Imports the modules in CLASS_MODULES; a config can then name their classes without a path: `class_path: NAME`."""
    for name in dict.fromkeys(name for task in task_options() for name in task.CLASS_MODULES):
        module = import_module(name)
        for public_name in getattr(module, "__all__", ()):
            getattr(module, public_name)  # some modules import their names on first use


def public_names() -> list[str]:
    """Public names of all modules in CLASS_MODULES, and those of the LightningModules."""
    modules = [import_module(name) for task in task_options() for name in task.CLASS_MODULES]
    names = [name for module in modules for name in getattr(module, "__all__", ())]
    return [*names, *sorted(set().union(*(module_names(task) for task in task_options())) - set(names))]


def default_callbacks() -> list[Any]:
    """The callbacks that every run gets by default, each once."""
    paths = dict.fromkeys(path for task in task_options() for path in task.CALLBACKS)
    return [imported(path)() for path in paths]


def settings_of_classes(value: Any) -> Iterator[Any]:
    """Yields the `init_args` of each class in some settings, outer classes first.

    Args:
        value: settings of a class, with `class_path` and `init_args`, or a list or mapping of settings.
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, list):
        for element in value:
            yield from settings_of_classes(element)
    elif isinstance(value, Mapping):
        if value.get("init_args") is not None:
            yield value["init_args"]
        for inner in list(value.values()):
            yield from settings_of_classes(inner)


def expand_model_files(model: Any) -> None:
    """Expands `~` in paths among the model's settings, because the shell does not expand it in YAML files.

    Args:
        model: settings of the model; changed in place.
    """
    names = {name for task in task_options() for name in task.MODEL_FILES}
    for settings in settings_of_classes(model):
        for name in names:
            if isinstance(settings.get(name), str):
                settings[name] = os.path.expanduser(settings[name])


def restore_none(model: Any) -> None:
    """Changes "None" in a model's settings back to None: jsonargparse reads null in an option of type `str | None` so.

    Args:
        model: settings of the model; changed in place.
    """
    for settings in settings_of_classes(model):
        for name, value in [*settings.items()]:
            if value == "None":
                settings[name] = None


def disable_pretrained(model: Any) -> None:
    """Changes a model's settings in place so that building it downloads no weights."""
    for settings in settings_of_classes(model):
        for task in task_options():
            task.disable_pretrained(settings)
