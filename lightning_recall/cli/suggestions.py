"""Says which option was probably meant, and which settings are missing."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_recall.cli.options import CommandLine, help_actions, known_options
from lightning_recall.cli.task_options import task_options

WRONG_OPTION = re.compile(r"unrecognized arguments|is not accepted|is set before its class|not accept option")
WRONG_KEY = re.compile(r"[Oo]ption '([\w.]+)' is not accepted|does not accept option '([\w.]+)'")
TOO_EARLY = re.compile(r"(\w+): [\w.]+\.Lightning(?:Data)?Module: Option '([\w.]+)' is not accepted")
REQUIRED = re.compile(r"(.*: )?the following arguments are required: ([\w., ]+)")

SIMILAR = 0.8
"""smallest similarity of a suggested option"""


def advise(message: str, parser: Any, subcommand: str, args: Sequence[str]) -> str:
    """Adds to an error of the parser which option was probably meant, or which setting is missing.

    Args:
        message: the error.
        parser: parser of the subcommand.
        subcommand: its name.
        args: arguments of the command.
    """
    required = REQUIRED.search(message)
    if not (required or WRONG_OPTION.search(message)):
        return message
    line = CommandLine(args)
    settings = line.settings.get(subcommand, line.settings)
    settings = settings if isinstance(settings, Mapping) else {}
    if missing := without_class(parser, line, settings):
        starts = dict.fromkeys(task.START for task in task_options())
        return f"{' '.join(starts)} (There is no class for {' and '.join(missing)}.)"
    if early := TOO_EARLY.search(message):
        root, option = early.groups()
        return f"--{root}.{option} is before --config or --{root}, which choose its class: write it after them."
    if required:
        names = [path_of(required[1] or "") + name.removeprefix(f"{subcommand}.") for name in required[2].split(", ")]
        return f"Required: {', '.join(names)}."
    known = list(dict.fromkeys(known_options(parser, line, settings)))
    unknown = next((name for name in line.options if name not in known and name != "c"), None)
    if unknown is None:
        key = WRONG_KEY.search(message)
        return f"{message}{did_you_mean(key[1] or key[2], known)}" if key else message
    if "is not accepted" in message:
        return f"{message}{did_you_mean(unknown, known)}"
    parent = unknown.rpartition(".")[0]
    if "is set before its class" in message and not any(name.startswith(f"{parent}.") for name in known):
        return message
    if message.startswith("unrecognized arguments"):
        return f"{message}.{did_you_mean(unknown, known)}"
    return f"There is no option --{unknown}.{did_you_mean(unknown, known)}"


def without_class(parser: Any, line: CommandLine, settings: Mapping[str, Any]) -> list[str]:
    """Which of --model and --data have no class."""
    roots = [action for action in help_actions(parser) if action.dest in ("model.help", "data.help")]
    names = [action.dest.removesuffix(".help") for action in roots]
    values = [line.chosen(action, parser, settings.get(name))[0] for action, name in zip(roots, names, strict=True)]
    return [f"--{name}" for name, cls in zip(names, values, strict=True) if cls is None]


def path_of(text: str) -> str:
    """Option that a message is about: "data: a.B: " -> "--data.", since names of classes contain dots.

    >>> path_of("model: a.Module: embedder: a.Embedder: ")
    '--model.embedder.'
    """
    return "--" + "".join(f"{part}." for part in text.split(": ") if part and "." not in part)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The known option most similar to a name, as a question, or "" if none is; compares whole names and last parts.

    >>> did_you_mean("trainer.max_epoch", ["trainer.max_epochs", "data.root"])
    ' Did you mean --trainer.max_epochs?'
    >>> did_you_mean("root", ["trainer.max_epochs", "data.root"])
    ' Did you mean --data.root?'
    """
    best = max(known, key=lambda option: similarity(name, option), default="")
    return f" Did you mean --{best}?" if similarity(name, best) >= SIMILAR else ""


def similarity(name: str, option: str) -> float:
    """Similarity of two names of options, about 0 to 1."""
    whole = difflib.SequenceMatcher(None, name, option).ratio()
    last = difflib.SequenceMatcher(None, name.rpartition(".")[2], option.rpartition(".")[2]).ratio()
    return max(whole, 0.95 * last) + 0.01 * whole
