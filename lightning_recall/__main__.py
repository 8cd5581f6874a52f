"""`python -m lightning_recall` is `lightning-recall`."""

from lightning_recall.cli import run

if __name__ == "__main__":
    run()
