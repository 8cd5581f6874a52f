"""`python -m lightning_recall` is `lightning-recall`."""

from lightning_recall.cli import main

if __name__ == "__main__":
    main()
