"""Entry points of the command `lightning-recall`; torch and Lightning are imported only for answers that need them."""

import gc
import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from lightning_recall.cli.early_answers import answer_early
from lightning_recall.cli.errors import shorten, simplify
from lightning_recall.cli.help import VERBOSE
from lightning_recall.cli.task_options import import_classes
from lightning_recall.cli.tools import run_tool, tool_of
from lightning_recall.memory_allocation import keep_freed_memory

if TYPE_CHECKING:
    from lightning_recall._lightning import ArgsType


def main(args: "ArgsType" = None) -> None:
    """Runs `lightning-recall fit|validate|test|predict`, or one of `cli.tools.TOOLS`.

    Args:
        args: arguments without the program name; None: `sys.argv[1:]`.
    """
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list):
        answer_early(given)
        tool = tool_of(given)
        if tool:
            run_tool(tool, given[1:])
            return
    from lightning_recall.cli.command import execute  # imports Lightning, which takes seconds

    execute(args)


def run() -> None:
    """Console entry point: prints user errors as one paragraph and exits with code 1.

    With LIGHTNING_RECALL_VERBOSE=1 the traceback is shown.
    """
    answer_early(sys.argv[1:])
    keep_freed_memory()
    tool = tool_of(sys.argv[1:])
    if tool:
        return run_tool_or_exit(tool, sys.argv[2:])
    import_without_collections()
    from lightning_recall.cli.command import execute
    from lightning_recall.cli.user_errors import USER_ERRORS, explain

    if os.environ.get(VERBOSE):
        return execute()
    show_warnings_in_a_line()
    try:
        execute()
    except USER_ERRORS as error:
        exit_with(explain(error))


def run_tool_or_exit(name: str, args: list[str]) -> None:
    """Runs one of `TOOLS`, and prints user errors as one paragraph."""
    if os.environ.get(VERBOSE):
        return run_tool(name, args)
    show_warnings_in_a_line()
    try:
        run_tool(name, args)
    except (ValueError, OSError, ImportError) as error:
        exit_with(shorten(simplify(str(error))) or type(error).__name__)


def show_warnings_in_a_line() -> None:
    """Prints warnings of this process without file and line."""
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"


def exit_with(message: str) -> None:
    """Prints an error and exits with code 1."""
    sys.stderr.write(f"lightning-recall: error: {message}\n({VERBOSE}=1 shows the traceback.)\n")
    sys.exit(1)


def import_without_collections() -> None:
    """Imports Lightning and the classes of all tasks with the garbage collector off; it ignores their objects later.

    The imports create about a million objects that live as long as the process. The collector would search them for
    garbage again and again, which takes a fifth of the time of the imports.
    """
    if "torch" in sys.modules:  # this process has imported most of it, and may have garbage of its own
        return
    gc.disable()
    import_module("lightning_recall.cli.command")
    import_classes()
    gc.freeze()
    gc.enable()
