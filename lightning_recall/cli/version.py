"""What `lightning-recall --version` prints."""

import platform
from argparse import SUPPRESS, Action
from importlib import import_module
from importlib.metadata import version
from typing import Any


class PrintVersion(Action):
    """Prints the versions and exits; reads those of other packages without importing them."""

    def __init__(self, option_strings: list[str], **_: Any) -> None:
        super().__init__(option_strings, SUPPRESS, nargs=0, help="Print the versions of this package and others.")

    def __call__(self, parser: Any, *_: Any) -> None:
        """Prints one line."""
        print(versions())  # the output of the option
        parser.exit()


def versions() -> str:
    """The version of this package, of Lightning, torch and Python, in one line."""
    from lightning_recall._lightning import PACKAGE  # not at the top: other texts of the command do not need it

    own = import_module("lightning_recall").__version__
    others = {PACKAGE: version(PACKAGE.partition(".")[0]), "torch": version("torch")}
    named = [f"{name} {number}" for name, number in {**others, "Python": platform.python_version()}.items()]
    return f"lightning-recall {own} ({', '.join(named)})"
