"""The commands for what comes after a training, such as `lightning-recall compare`; their parsers need no torch."""

from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple


class Tool(NamedTuple):
    """A command with a parser of its own.

    module: has `add_arguments(parser)` and `run(arguments)`; importing it imports neither torch nor Lightning.
    summary: what the command does, in one sentence.
    """

    module: str
    summary: str


TOOLS: dict[str, Tool] = {
    "compare": Tool("lightning_recall.commands.compare", "Compare two models by their embeddings of the same images."),
    "evaluate": Tool(
        "lightning_recall.commands.evaluate",
        "Score embeddings on disk with little memory; torchrun shares the queries among processes.",
    ),
    "export": Tool(
        "lightning_recall.commands.export",
        "Export a trained model to ONNX, torch.export or OpenVINO, and compare the file with PyTorch.",
    ),
    "index": Tool("lightning_recall.commands.index", "Build a search index of embeddings, or add items to one."),
    "search": Tool("lightning_recall.commands.search", "Find the items of an index that are nearest to images."),
    "share": Tool(
        "lightning_recall.commands.share",
        "Write a checkpoint as a folder without pickles, with a model card.",
    ),
    "sizes": Tool("lightning_recall.commands.sizes", "Compare recall, bytes and search time of smaller embeddings."),
}
"""name of the command -> what it is"""


class DefaultsHelpFormatter(HelpFormatter):
    """Adds the default of an option to its help, if there is one and the help does not name it."""

    def _get_help_string(self, action: Action) -> str | None:
        default = action.default
        if not action.option_strings or default is None or default is False or default == () or default == SUPPRESS:
            return action.help
        if action.help is None or "default:" in action.help:
            return action.help
        text = " ".join(map(str, default)) if isinstance(default, list) else "%(default)s"
        return f"{action.help} (default: {text})"


def tool_parser(name: str) -> ArgumentParser:
    """The parser of a command."""
    tool = TOOLS[name]
    parser = ArgumentParser(
        f"lightning-recall {name}", description=tool.summary, formatter_class=DefaultsHelpFormatter, allow_abbrev=False
    )
    module: Any = import_module(tool.module)
    module.add_arguments(parser)
    return parser


def run_tool(name: str, args: Sequence[str]) -> None:
    """Runs a command.

    Args:
        name: its name.
        args: arguments after the name.
    """
    arguments = tool_parser(name).parse_args(args)
    module: Any = import_module(TOOLS[name].module)
    module.run(arguments)


def tool_of(args: Sequence[str]) -> str | None:
    """Name of the command that the arguments start with; None if it is a subcommand of LightningCLI or an option."""
    return args[0] if args and args[0] in TOOLS else None
