"""What `lightning-recall --help` says."""

import re
from argparse import Action
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter

from lightning_recall._lightning import LightningArgumentParser
from lightning_recall.cli.errors import plain, shortened

VERBOSE = "LIGHTNING_RECALL_VERBOSE"  # environment variable

SUBCOMMANDS = {
    "fit": "Train a model, and validate it on classes set aside from training.",
    "validate": "Score a model on the validation classes.",
    "test": "Score a model on the test classes, with pictures and a report.",
    "predict": "Write the embeddings of the test images.",
}
OVERVIEW = """Trains and tests image-retrieval models for Recall@k.

  lightning-recall fit --config configs/glyphs.yaml
  lightning-recall fit --config configs/your_images.yaml --data.root FOLDER
  lightning-recall test --config configs/your_images.yaml --data.root FOLDER --ckpt_path FILE"""
DETAILS = """Settings come from YAML files (--config, which may be repeated) and from the command line, which wins:

  --data.batch_size 512          images that the loss compares
  --model.chunk_size 64          images in one pass of the network: less memory, the same result
  --model.loss SupRecallAtKLoss  any loss; --model.loss.delta 0.1 sets its option
  --trainer.max_epochs 20        how long; --trainer.devices 8 --trainer.strategy ddp: on eight GPUs
  --ckpt_path FILE               weights to test with, or a training to go on with

--model.help RetrievalModule, --data.help ImageFolderDataModule and --trainer.callbacks.help RetrievalEvaluation list
the options of a class, --print_config all settings of a run. Below are those of the Trainer and the command. An error
is told in a line or two; with LIGHTNING_RECALL_VERBOSE=1 in the environment, with the place where it happened."""


class ShortHelp(DefaultHelpFormatter):
    """Help that keeps the lines of its texts, and names this package's classes, not the thousands of torch and timm."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _expand_help(self, action: Action) -> str:
        def ours(match: re.Match[str]) -> str:
            names = match[1].split(", ")
            known = [name for name in names if name.startswith("lightning_recall.")]
            return "known subclasses: " + ", ".join([*known, f"and {len(names) - len(known)} of other packages"])

        return re.sub(r"known subclasses: ([\w.]+(?:, [\w.]+)*)", ours, super()._expand_help(action))


class Parser(LightningArgumentParser):
    """Lightning's parser with short help and plain errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortHelp, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says what is wrong in one paragraph, and exits with 2."""
        super().error(shortened(plain(message)), ex)


def texts() -> dict[str, Any]:
    """Descriptions of the command and its subcommands, as LightningCLI's `parser_kwargs` take them."""
    subcommands = {
        name: {
            "description": f"{text}\n\n{DETAILS}",
            "usage": f"lightning-recall {name} --config FILE [--OPTION VALUE ...]",
        }
        for name, text in SUBCOMMANDS.items()
    }
    return {"prog": "lightning-recall", "description": OVERVIEW, **subcommands}


def name_subcommands(parser: LightningArgumentParser) -> None:
    """Says what each subcommand does; Lightning takes the first lines of its own methods' docstrings, cut off."""
    subcommands = parser._subcommands_action
    assert subcommands is not None
    for choice in subcommands._choices_actions:
        choice.help = SUBCOMMANDS[choice.dest]
