"""The command `lightning-recall`: Lightning's CLI over retrieval modules, data modules and callbacks."""

from lightning_recall.cli.command import main, run

__all__ = ["main", "run"]
