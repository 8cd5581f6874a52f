"""Answers of the command that need neither torch nor Lightning, whose imports take seconds."""

import os
from collections.abc import Iterator, Sequence

from lightning_recall.cli.class_help import asked_help
from lightning_recall.cli.help import overview_parser, subcommand_names
from lightning_recall.cli.tools import tool_of


def answer_early(args: Sequence[str]) -> None:
    """Prints the overview, the versions, or the error for a missing subcommand or settings file, and exits.

    Returns if the arguments ask for something else.

    Args:
        args: the arguments of the command.
    """
    first = args[0] if args else ""
    if tool_of(args):
        return
    is_subcommand = first in subcommand_names()
    if first in ("", "-h", "--help", "--version") or not (is_subcommand or first.startswith("-")):
        overview_parser().parse_args(args[:1])
    for file in missing_settings_files(args):
        overview_parser().parse_args([*args[:is_subcommand], f"--config={file}"])


def missing_settings_files(args: Sequence[str]) -> Iterator[str]:
    """Yields the values of --config before any --help that are neither a file nor other settings.

    None if the help of a class is asked for, which does not read them all.
    """
    if asked_help(args):
        return
    for position, arg in enumerate(args):
        if arg in ("-h", "--help"):
            return
        name, equals, value = arg.partition("=")
        if name not in ("-c", "--config"):
            continue
        value = value if equals else "".join(args[position + 1 : position + 2])
        may_be_text_or_url = any(mark in value for mark in ":{[\n")
        if value and not may_be_text_or_url and not os.path.exists(os.path.expanduser(value)):
            yield value
