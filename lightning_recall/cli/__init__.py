"""The command `lightning-recall`: Lightning's CLI with checks before the run and short messages."""

from lightning_recall.cli.console import main, run

__all__ = ["main", "run"]
