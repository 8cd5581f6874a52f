"""Help texts of the command, and its parser without the options of a run; needs neither torch nor Lightning."""

import re
from argparse import Action
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]  # loaded lazily
from jsonargparse._util import import_object

from lightning_recall.cli.errors import shorten, simplify
from lightning_recall.cli.options import is_choice
from lightning_recall.cli.task_options import TaskOptions, task_options
from lightning_recall.cli.tools import TOOLS
from lightning_recall.cli.version import PrintVersion

VERBOSE = "LIGHTNING_RECALL_VERBOSE"  # environment variable

OPTIONS = {
    "--trainer.max_epochs 20": "number of epochs; on eight GPUs add --trainer.devices 8 --trainer.strategy ddp",
    "--ckpt_path FILE": "checkpoint to test, or to resume training from",
}
"""example of an option that every task has -> what it sets"""


class ShortHelp(DefaultHelpFormatter):
    """Help formatter that keeps line breaks and lists only this package's subclasses."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _expand_help(self, action: Action) -> str:
        def ours(match: re.Match[str]) -> str:
            names = match[1].split(", ")
            known = [name for name in names if name.startswith("lightning_recall.")]
            others = f"{len(names) - len(known)} of other packages"
            known = [name for name in known if is_choice(action, import_object(name))]
            return "known subclasses: " + ", ".join([*known, f"and {others}"] if known else [others])

        return re.sub(r"known subclasses: ([\w.]+(?:, [\w.]+)*)", ours, super()._expand_help(action))


class CommandParser(ArgumentParser):
    """Parser with short help and simplified errors; options cannot be abbreviated.

    Attributes:
        advise: adds advice to an error.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults = {"formatter_class": ShortHelp, "prog": "lightning-recall", "allow_abbrev": False}
        super().__init__(*args, **{**defaults, **kwargs})
        self.advise: Callable[[str], str] = str
        self.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file of settings; may be repeated.")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the error in one paragraph, and exits with code 2."""
        super().error(self.advise(shorten(simplify(message))), ex)


def title(task: TaskOptions) -> str:
    """Name of a task at the start of a line."""
    return task.NAME.capitalize()


def table(options: Mapping[str, str]) -> str:
    """One line for each option: an example and what it sets."""
    return "\n".join(f"  {option:<35}{text}" for option, text in options.items())


def details() -> str:
    """Help text about settings, shown for every subcommand."""
    tables = [f"{title(task)}:\n{table(task.OPTIONS)}" for task in task_options()]
    options = "\n\n".join([*tables, f"Every task:\n{table(OPTIONS)}"])
    class_help = "\n".join(dict.fromkeys(f"  {option}" for task in task_options() for option in task.CLASS_HELP))
    return f"""\
Settings come from YAML files (--config, which may be repeated); command-line values override the files:

{options}

--print_config prints all settings of a run with their defaults. These list the options of a class:

{class_help}

Options of the Trainer and the command are listed below.
{VERBOSE}=1 in the environment prints the traceback of an error."""


def subcommand_names() -> list[str]:
    """Names of the subcommands, the same for every task."""
    return list(task_options()[0].SUBCOMMANDS)


def subcommand_summary(name: str) -> str:
    """What a subcommand does: a line for each task."""
    return "\n".join(f"{title(task)}: {task.SUBCOMMANDS[name]}" for task in task_options())


def parser_descriptions() -> dict[str, Any]:
    """Descriptions of the command and its subcommands, for LightningCLI's `parser_kwargs`."""
    subcommands = {
        name: {
            "description": f"{subcommand_summary(name)}\n\n{details()}",
            "usage": f"lightning-recall {name} --config FILE [--OPTION VALUE ...]",
        }
        for name in subcommand_names()
    }
    overview = "\n\n".join(task.OVERVIEW for task in task_options())
    return {"prog": "lightning-recall", "description": overview, **subcommands}


def complete_overview(parser: ArgumentParser) -> None:
    """Adds --version, and sets the usage and the help of the subcommands, which Lightning truncates.

    Args:
        parser: parser of the command, with its subcommands.
    """
    parser.add_argument("--version", action=PrintVersion)
    # not before the subcommands are added, which begin their usage with it
    parser.usage = (
        f"lightning-recall {{{','.join(subcommand_names())}}} --config FILE [--OPTION VALUE ...]\n"
        f"       lightning-recall {{{','.join(TOOLS)}}} --help"
    )
    subcommands = parser._subcommands_action  # jsonargparse has no public way to change the help of a subcommand
    assert subcommands is not None
    for choice in subcommands._choices_actions:
        choice.help = subcommand_summary(choice.dest)
    for name, tool in TOOLS.items():
        subcommands.add_subcommand(name, CommandParser(description=tool.summary), help=tool.summary)


def overview_parser() -> CommandParser:
    """The parser of the command, whose subcommands have no options but --help and --config."""
    texts = parser_descriptions()
    of_subcommands = {name: texts.pop(name) for name in subcommand_names()}
    parser = CommandParser(**texts)
    subcommands = parser.add_subcommands()
    for name, text in of_subcommands.items():
        subcommands.add_subcommand(name, CommandParser(**text), help="")
    complete_overview(parser)
    return parser
