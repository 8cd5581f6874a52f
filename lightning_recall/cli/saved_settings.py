"""The settings of a run, saved in config.yaml and in its checkpoints."""

from typing import Any

from lightning_recall._lightning import INSTANTIATOR, LightningModule, SaveConfigCallback, Trainer
from lightning_recall.callbacks.output import output_path, print_path, unused_paths
from lightning_recall.cli.task_options import disable_pretrained


class SaveSettings(SaveConfigCallback):
    """Writes config.yaml to the run's folder, and saves the module's hyperparameters in checkpoints.

    Never overwrites another run's config.yaml; writes config-1.yaml instead.

    The modules do not call `save_hyperparameters`, because their arguments are networks, which a checkpoint would then
    hold twice. Checkpoints hold the command's settings instead; `load_from_checkpoint` rebuilds the networks from them.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the settings once."""
        if self.already_saved:
            return
        self.already_saved = True
        path = output_path(trainer, self.config_filename)  # collective call: must run on every process
        if trainer.is_global_zero:
            (free,) = unused_paths(path)
            self.parser.save(self.config, free, skip_unset=False, multifile=self.multifile)
            if free != path:
                print_path("Settings (config.yaml of another run was kept)", free)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the model's settings, unless the module has saved its own hyperparameters."""
        model = self.config.model.as_dict()
        disable_pretrained(model)
        settings = {**model.get("init_args", {}), "_class_path": model["class_path"], "_instantiator": INSTANTIATOR}
        checkpoint.setdefault(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, settings)
