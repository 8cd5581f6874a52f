"""The options of a command line, including those of the classes that it chooses."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # a package without type hints
from jsonargparse import ArgumentParser, Namespace, _typehints
from jsonargparse._actions import _ActionHelpClassPath  # the only list of the options that hold classes
from jsonargparse._util import get_import_path, import_object

from lightning_recall.cli.task_options import tasks_of


class CommandLine:
    """What the arguments say about the chosen classes, without checking any value.

    Args:
        args: the arguments, without the program name.

    Attributes:
        options: name of an option, without dashes -> its value; "" if it has none.
        settings: the settings files, merged.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.options: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        for position, arg in enumerate(args):
            name, equals, value = arg.partition("=")
            if not re.match(r"-c$|--\w", name):
                continue
            following = args[position + 1] if position + 1 < len(args) else ""
            value = value if equals else "" if following.startswith("--") else following
            self.options[name.lstrip("-").removesuffix("+")] = value
            if name in ("-c", "--config"):
                merge(self.settings, read_yaml(value))

    def chosen(self, action: Any, parser: Any, settings: Any) -> tuple[type | None, Mapping[str, Any]]:
        """The class that an option holds, or None, and the settings of this class in the files.

        Args:
            action: the --*.help option of the option.
            parser: parser with both options.
            settings: what the files set for the option.
        """
        name = action.dest.removesuffix(".help")
        single = action._help_types[0] if action.nargs == 0 else None
        if single is not None:
            return single, settings if isinstance(settings, Mapping) else {}
        default = next((other.default for other in parser._actions if other.dest == name), None)
        in_files = class_of(action, settings)
        given = class_of(action, self.options.get(name)) or class_of(action, self.options.get(f"{name}.help"))
        found = given or in_files or class_of(action, default)
        init_args = settings.get("init_args") if isinstance(settings, Mapping) and found is in_files else None
        return found, init_args if isinstance(init_args, Mapping) else {}


def read_yaml(path: str) -> dict[str, Any]:
    """Settings in a file; empty if it cannot be read, which the parser reports."""
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def merge(settings: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds settings in place; another class replaces a class with its settings."""
    for name, value in more.items():
        old = settings.get(name)
        if (
            isinstance(old, dict)
            and isinstance(value, dict)
            and value.get("class_path") in (None, old.get("class_path"))
        ):
            merge(old, value)
        else:
            settings[name] = value


def class_of(action: Any, value: Any) -> type | None:
    """The class that a value names, as a name or with `class_path`; None if it names none."""
    if isinstance(value, list):
        value = value[-1] if value else None
    path = value.get("class_path") if isinstance(value, Mapping | Namespace) else value
    if not isinstance(path, str) or not path:
        return None
    try:
        found: type | None = action.resolve_help_type(path, action.option_strings[0])
    except (TypeError, ValueError, ImportError, AttributeError):
        return None
    return found


def class_parser(cls: type, action: Any) -> ArgumentParser:
    """Parser of the options of a class; their names start with the name of the option that holds it."""
    parser = ArgumentParser()
    path = Namespace(class_path=get_import_path(cls))  # type: ignore[no-untyped-call]  # of jsonargparse
    # arguments that the caller gives, such as `params` of optimizers
    _, filled_in = _typehints.adapt_partial_callable_class(action._typehint, path)  # type: ignore[no-untyped-call]  # no types there
    kwargs = {**action.sub_add_kwargs, "skip": {*action.sub_add_kwargs.get("skip", ()), *(filled_in or ())}}
    parser.add_class_arguments(cls, action.dest.removesuffix(".help"), **kwargs)
    for below in help_actions(parser):
        below.holder = cls
    return parser


def help_actions(parser: Any) -> list[Any]:
    """The --*.help options of a parser: one for each option that holds a class."""
    return [action for action in parser._actions if isinstance(action, _ActionHelpClassPath)]


def known_options(parser: Any, line: CommandLine, settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of all options, with those of the chosen classes, without dashes.

    Args:
        parser: parser of a subcommand or of a class.
        line: the command line.
        settings: what the files set for the options of the parser.
        prefix: start of all names of the parser: the name of the option that holds its class, and a dot.
    """
    for action in parser._actions:
        yield from (name.lstrip("-") for name in action.option_strings if not name.endswith("+"))
    for action in help_actions(parser):
        name = action.dest.removesuffix(".help")
        value: Any = settings
        for part in name.removeprefix(prefix).split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        cls, init_args = line.chosen(action, parser, value)
        if cls is not None:
            yield from known_options(class_parser(cls, action), line, init_args, f"{name}.")


def choices(action: Any) -> list[type]:
    """The classes that an option takes, sorted by name: those of this project, if there are any."""
    paths = sorted({path for cls in action._help_types for path in _typehints.get_all_subclass_paths(cls)})
    classes = {cls.__name__: cls for cls in importable(paths) if is_choice(action, cls)}
    ours = [cls for cls in classes.values() if cls.__module__.startswith("lightning_recall.")]
    return sorted(ours or classes.values(), key=lambda cls: cls.__name__)


def is_choice(action: Any, cls: type) -> bool:
    """Whether a class matches the pattern that a task's `CHOICES` holds for an option, or there is none.

    The type of an option does not tell a loss from an embedder: both are a `torch.nn.Module`. An option of the module
    of a task takes the classes of this task.
    """
    name = str(action.dest).removesuffix(".help").rpartition(".")[2]
    patterns = [task.CHOICES[name] for task in tasks_of(getattr(action, "holder", None)) if name in task.CHOICES]
    return not patterns or any(fnmatch(f"{cls.__module__}.{cls.__name__}", pattern) for pattern in patterns)


def importable(paths: Iterable[str]) -> Iterator[Any]:
    """The classes at some import paths, without those that are not an attribute of their module, such as local ones."""
    for path in paths:
        with suppress(AttributeError, ImportError):
            yield import_object(path)
