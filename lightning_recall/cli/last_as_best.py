"""Without validation, the best checkpoint is the last one."""

from lightning_recall._lightning import (
    Callback,
    LightningModule,
    ModelCheckpoint,
    Trainer,
    is_fast_dev_run,
    rank_zero_info,
)


class LastAsBest(Callback):
    """In a training without validation, lets each ModelCheckpoint that monitors a score of it save the last epoch.

    ModelCheckpoint would otherwise save nothing under its `filename`, since the score is never logged.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the checkpoints before a resumed training restores them."""
        if stage != "fit" or validates(trainer) or is_fast_dev_run(trainer):
            return
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and (checkpoint.monitor or "").startswith("val/"):
                name = f"{checkpoint.filename or 'the checkpoint'}{checkpoint.FILE_EXTENSION}"
                rank_zero_info(f"There is no validation to log {checkpoint.monitor}: {name} is the last epoch.")
                checkpoint.monitor, checkpoint.save_top_k = None, 1
                # ModelCheckpoint saves at the end of a training epoch only if validation is due after each
                trainer.check_val_every_n_epoch = 1


def validates(trainer: Trainer) -> bool:
    """Whether the training has validation data, as far as its data module shows."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
    return trainer.enable_validation and getattr(datamodule, "val_data", ...) is not None
