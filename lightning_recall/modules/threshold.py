"""Keeps the similarity threshold that was chosen on validation with the module."""

from typing import Any

from lightning_recall._lightning import LightningModule

CHECKPOINT_KEY = "similarity_threshold"


class ModuleWithThreshold(LightningModule):
    """Remembers from which similarity on two images show the same class, and saves it in checkpoints.

    `ThresholdSelection` chooses the threshold on validation.

    Attributes:
        similarity_threshold: {"similarity": threshold, "false_accept_rate": ..., "true_accept_rate": ..., "split":
            "val"}: the threshold, the rates that it has on the split, and the split that it was chosen on; may be set.
            None: unknown.
    """

    similarity_threshold: dict[str, Any] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the threshold, as plain values."""
        super().on_save_checkpoint(checkpoint)
        if self.similarity_threshold is not None:
            checkpoint[CHECKPOINT_KEY] = dict(self.similarity_threshold)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the threshold of the checkpoint; a checkpoint without one has none."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(CHECKPOINT_KEY)
        self.similarity_threshold = None if saved is None else dict(saved)
