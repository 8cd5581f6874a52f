"""Makes --*.help work for the options of nested classes, in any order and with classes that a settings file chooses."""

from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse._util import get_import_path

from lightning_recall.cli.options import CommandLine, choices, class_parser, help_actions


def class_help(parser: Any, args: Sequence[str]) -> list[str] | str | None:
    """Returns arguments for which jsonargparse prints the help that was asked for, or the text of the help.

    The text lists classes, if no class is chosen. None if no --*.help is given, or if there is no such option.

    jsonargparse prints the help of a nested class only if the class of each option above it is given in the same way:
    `--model.help RetrievalModule --model.embedder.help ImageEmbedder`. This function adds the missing ones.

    Args:
        parser: parser of the subcommand.
        args: arguments after the subcommand.
    """
    line, target = CommandLine(args), asked_help(args)
    if not target:
        return None
    given = line.options[target]
    settings: Any = line.settings
    found: list[str] = []
    prefix = ""
    while True:
        above = [action for action in help_actions(parser) if target.startswith(action.dest.removesuffix("help"))]
        if not above:
            return None
        action = above[-1]
        name = action.dest.removesuffix(".help")
        for part in name.removeprefix(prefix).split("."):
            settings = settings.get(part) if isinstance(settings, Mapping) else None
        cls, settings = line.chosen(action, parser, settings)
        if action.dest == target:
            if action.nargs == 0:
                return [*found, f"--{target}"]
            return [*found, f"--{target}={given or get_import_path(cls)}"] if given or cls else names(action)
        cls = cls if takes(cls, action, target) else next((c for c in choices(action) if takes(c, action, target)), cls)
        if cls is None:
            return None
        # jsonargparse skips an argument after an option without a value
        found += [f"--{name}.help={get_import_path(cls)}"] if action.nargs != 0 else [f"--{name}.help", "skipped"]
        parser, prefix = class_parser(cls, action), f"{name}."


def asked_help(args: Sequence[str]) -> str:
    """The --*.help option with the most parts, without dashes; "" if there is none."""
    asked = [name for name in CommandLine(args).options if name.endswith(".help")]
    return max(asked, key=lambda name: name.count("."), default="")


def takes(cls: type | None, action: Any, target: str) -> bool:
    """Whether a class has the option of a --*.help option, or one above it."""
    if cls is None:
        return False
    return any(target.startswith(below.dest.removesuffix("help")) for below in help_actions(class_parser(cls, action)))


def names(action: Any) -> str:
    """Lists the classes that an option takes, with an example."""
    (option,) = action.option_strings
    found = [cls.__name__ for cls in choices(action)]
    return f"{option} CLASS lists the options of a class: {', '.join(found)}. For example:\n  {option} {found[0]}"
