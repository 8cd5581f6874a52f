"""Saves the model after a test, or beside the embeddings that it has computed."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning_recall._lightning import Callback, LightningModule, Trainer, rank_zero_warn
from lightning_recall.callbacks.embedding_state import fingerprint
from lightning_recall.callbacks.output import output_path, print_path, unused_paths, writes_files
from lightning_recall.checks import first_line
from lightning_recall.sharing.config import WEIGHTS
from lightning_recall.sharing.weights import read_weights

PICTURES = "retrieved_images*.png"  # of RetrievedImages


class ModelSaver(Callback):
    """After a test, writes the model to the folder `model` in the run's folder, with the scores in its model card.

    The card shows the first picture of `RetrievedImages`, if this callback is used. The folder is that of
    `RetrievalModule.save_pretrained`: `from_pretrained` loads it, and `hf upload OWNER/NAME FOLDER` publishes it.

    Args:
        license: licence of the model for the card, as the Hugging Face Hub names it, such as "apache-2.0"; None: not
            stated.

    Raises:
        ValueError: when a test starts, for a module without `save_pretrained`.
    """

    def __init__(self, license: str | None = None) -> None:  # noqa: A002  # the name in the model card
        self.license = license
        self.folder: Path | None = None  # of the run, between the end of the test and the teardown
        self.known: set[Path] = set()  # pictures of earlier tests

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the module, and remembers the pictures that exist."""
        if not hasattr(pl_module, "save_pretrained"):
            raise ValueError(
                f"ModelSaver needs a module with save_pretrained, such as RetrievalModule, got "
                f"{type(pl_module).__name__}: remove the callback."
            )
        self.folder = None
        if writes_files(trainer):
            self.known = set(output_path(trainer, "model").parent.glob(PICTURES))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers that the test is complete; the other callbacks write their pictures now."""
        if writes_files(trainer):
            self.folder = output_path(trainer, "model").parent  # must be called on all processes

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the model, on one process."""
        folder, self.folder = self.folder, None
        if folder is None or not trainer.is_global_zero:
            return
        pictures = sorted(set(folder.glob(PICTURES)) - self.known)
        (path,) = unused_paths(folder / "model")
        module: Any = pl_module
        module.save_pretrained(path, license=self.license, picture=next(iter(pictures), None))
        print_path("Model", path)


def save_model_beside(folder: Path, module: Any) -> None:
    """Saves a module to a folder with `save_pretrained`, if it has this method, unless the folder holds the model.

    The folder appears once it is complete. Call it on one process only. Warns if the module cannot be saved.

    Raises:
        ValueError: if the folder holds no model, or one with other weights.
    """
    if not hasattr(module, "save_pretrained"):
        return
    if folder.exists():
        check_same_weights(folder, module)
        return
    unfinished = folder.with_name(f"unfinished-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        module.save_pretrained(unfinished)
        os.replace(unfinished, folder)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        rank_zero_warn(f"The model is not saved in {folder}: {first_line(error)}.")


def check_same_weights(folder: Path, module: Any) -> None:
    """Raises ValueError if a folder holds no model, or one with other weights than the module's."""
    try:
        is_same = fingerprint(read_weights(folder / WEIGHTS)) == fingerprint(module.state_dict())
    except ValueError as error:
        raise ValueError(f"{folder} is not the folder of a model, rename or delete it: {first_line(error)}.") from error
    if not is_same:
        raise ValueError(f"{folder} holds a model with other weights: choose another folder, or delete this one.")
