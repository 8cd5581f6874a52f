"""Checks that a run does not mix the classes of two tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from importlib import import_module
from typing import Any

import yaml  # type: ignore[import-untyped]  # a package without type hints
from jsonargparse import Namespace
from jsonargparse._util import import_object

from lightning_recall.cli.options import CommandLine
from lightning_recall.cli.task_options import TaskOptions, imported, module_names, task_options, tasks_of


def check_tasks(config: Any, args: Sequence[str]) -> None:
    """Checks that the data, the model and the callbacks of a run are of the same task.

    Args:
        config: settings of the subcommand.
        args: the arguments of the command.

    Raises:
        ValueError: for a class or an option of another task than the module's.
    """
    module = import_object(config.model["class_path"])
    task = next((task for task in task_options() if issubclass(module, imported(task.MODULE))), None)
    if task is None:
        return
    for option, path in chosen_classes({"data": config.data, "model": config.model, "trainer": config.trainer}):
        cls = import_object(path)
        owner = owner_of(cls)
        if owner is not None and owner is not task:
            found = public_choices(task, option)
            remedy = (
                f"choose {' or '.join([', '.join(found[:-1]), found[-1]] if found[1:] else found)}" if found else ""
            )
            raise ValueError(
                f"--{option} {cls.__name__} is for {owner.NAME}, but {module.__name__} is for {task.NAME}: "
                f"{remedy or 'remove it'}."
            )
    others = [other for other in task_options() if other is not task]
    for option in CommandLine(args).options:
        for other in others:
            if option.partition(".")[0] in other.EVALUATION:
                raise ValueError(
                    f"--{option} is for {other.NAME}, but {module.__name__} is for {task.NAME}: remove it."
                )


def chosen_tasks(args: Sequence[str]) -> list[TaskOptions]:
    """The task of the module that the arguments of the command choose; all tasks if they choose none of a task."""
    path = chosen_path(args, "model")
    named = [task for task in task_options() if path.rpartition(".")[2] in module_names(task)]
    if named or "." not in path:
        return named or task_options()
    with suppress(ImportError, AttributeError, ValueError):  # reported by the parser
        return tasks_of(import_object(path))
    return task_options()


def chosen_links(args: Sequence[str]) -> dict[tuple[str | tuple[str, ...], str], Callable[..., Any]]:
    """The links of the chosen tasks: (source or sources, target) -> function of the sources' values.

    Without links to the options of a function such as `torchvision.models.segmentation.fcn_resnet50`: jsonargparse
    raises TypeError for them.
    """
    links = {(source, target): compute for task in chosen_tasks(args) for source, target, compute in task.LINKS}
    return {key: compute for key, compute in links.items() if not is_function(chosen_path(args, holder_of(key[1])))}


def holder_of(target: str) -> str:
    """Option that holds the class of a linked setting.

    >>> holder_of("model.init_args.network.init_args.num_classes")
    'model.network'
    """
    return target.rpartition(".init_args.")[0].replace(".init_args.", ".")


def chosen_path(args: Sequence[str], option: str) -> str:
    """What the arguments of the command set for an option that holds a class: its name or path, or ""."""
    line = CommandLine(args)
    value: Any = next((part for name in args if isinstance(part := line.settings.get(name), Mapping)), line.settings)
    for number, part in enumerate(option.split(".")):
        value = value.get("init_args") if number and isinstance(value, Mapping) else value
        value = value.get(part) if isinstance(value, Mapping) else None
    given = line.options.get(option) or line.options.get(f"{option}.help")
    if given:
        with suppress(yaml.YAMLError):  # reported by the parser
            value = yaml.safe_load(given)
    return str((value.get("class_path") if isinstance(value, Mapping) else value) or "")


def is_function(path: str) -> bool:
    """Whether a path package.module.name is that of a function."""
    with suppress(ImportError, AttributeError, ValueError):  # reported by the parser
        return "." in path and not isinstance(import_object(path), type)
    return False


def owner_of(cls: Any) -> TaskOptions | None:
    """The task that alone can use a class; None if there is none."""
    path = f"{cls.__module__}.{cls.__name__}"
    return next((task for task in task_options() if any(fnmatch(path, own) for own in task.OWN_CLASSES)), None)


def chosen_classes(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields (option, class path) for each class in some settings, outer classes first."""
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if isinstance(settings, list):
        for element in settings:
            yield from chosen_classes(element, name)
    elif isinstance(settings, Mapping):
        if isinstance(settings.get("class_path"), str):
            yield name, settings["class_path"]
        for key, value in settings.items():
            yield from chosen_classes(value, name if key == "init_args" else ".".join(filter(None, [name, str(key)])))


def public_choices(task: TaskOptions, option: str) -> list[str]:
    """Names of the classes of a task that an option takes; none if the task has no pattern for it."""
    pattern = task.CHOICES.get(option.rpartition(".")[2], "")
    modules = [import_module(name) for name in task.CLASS_MODULES]
    classes = [getattr(module, name) for module in modules for name in getattr(module, "__all__", ())]
    found = {cls.__name__ for cls in classes if isinstance(cls, type) and matches(cls, pattern)}
    return sorted(found)


def matches(cls: type, pattern: str) -> bool:
    """Whether a class (module.Name) matches a pattern."""
    return fnmatch(f"{cls.__module__}.{cls.__name__}", pattern)
