"""Hides messages of Lightning that users of the command cannot act on."""

import logging
import warnings

from lightning_recall._lightning import PACKAGE


def hide_noise() -> None:
    """Hides Lightning warnings that users cannot act on."""
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # raised by Lightning 2.6 with torch >= 2.13
        "torch.distributed.nn.functional.* is deprecated.*",  # same reason as above
        "Using `DistributedSampler` with the dataloaders.*",  # callbacks remove the duplicates that it adds
        "The dirpath has changed from.*",  # each run writes to a new folder
        "Found .* in eval mode at the start of training.*",  # BatchNorm is intentionally frozen
        "Total length of `list` across ranks is zero.*",  # val_classes=0 turns validation off
        "You're using the WeightAveraging callback, but loading a checkpoint outside.*",  # test uses the saved average
        "Using ModelCheckpoint with manual optimization.*",  # intended: checkpoints hold the state after the step
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger(f"{PACKAGE}.utilities.rank_zero").addFilter(is_not_noise)


def hide_advice_on_callbacks() -> None:
    """Hides Lightning's advice to add the callbacks of the training: an evaluation needs none of their states."""
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")


def is_not_noise(record: logging.LogRecord) -> bool:
    """Filters out Lightning's tips, and its words after Ctrl-C: InterruptCheckpoint has said what happens."""
    return not any(noise in record.getMessage() for noise in ("Tip: For seamless cloud", "Detected KeyboardInterrupt"))
