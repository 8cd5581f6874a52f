"""`lightning-recall share`: writes a checkpoint as a folder that `RetrievalModule.from_pretrained` loads."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint of a RetrievalModule, a .ckpt file")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="new folder for weights, settings and model card")
    parser.add_argument("--license", default=None, help="licence for the model card, such as apache-2.0")
    parser.add_argument("--picture", default=None, metavar="FILE", help="picture for the model card")


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder and prints it.

    Raises:
        ValueError: if the checkpoint cannot be loaded, or the folder holds a model.
        OSError: if there is no such checkpoint.
    """
    from lightning_recall.callbacks.output import print_line, print_path
    from lightning_recall.commands.saved_model import load_model

    path, card = Path(arguments.checkpoint).expanduser(), Path(arguments.to).expanduser() / "README.md"
    if path.is_dir():
        raise ValueError(f"{path} is a folder: pass a checkpoint, a .ckpt file.")
    module, has_card = load_model(path), card.exists()
    module.save_pretrained(arguments.to, license=arguments.license, picture=arguments.picture)
    print_path("Model, for RetrievalModule.from_pretrained", arguments.to)
    if has_card:
        print_line(f"No model card was written, because {card} existed.")
