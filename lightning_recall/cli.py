"""The command `lightning-recall`: Lightning's CLI over retrieval modules, data modules and callbacks."""

import os
from pathlib import Path

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

# Imported so that configs can name their classes without a module: `class_path: RetrievalModule`.
from lightning_recall import callbacks, datamodules, losses, mixup, models, modules  # noqa: F401
from lightning_recall.callbacks.output import say_where


class RecallCLI(LightningCLI):
    """LightningCLI that refuses a run whose results could not be kept, and whose checkpoints rebuild their module."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; the metrics of test and validate are shown once, by RetrievalEvaluation."""
        parser.set_defaults({"test.verbose": False, "validate.verbose": False})
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Refuses checkpoints that a new process cannot find: Lightning would test an untrained network."""
        ckpt_path = self.config[self.config.subcommand].get("ckpt_path")
        if self.config.subcommand != "fit" and ckpt_path in ("best", "last"):
            self.parser.error(f"--ckpt_path {ckpt_path} is known only to the process that trains: give the path of a file.")

    def instantiate_classes(self) -> None:
        """Instantiates, and has checkpoints hold the configuration, for `load_from_checkpoint` in plain Python."""
        super().instantiate_classes()
        if not self.model.hparams:
            model = self.config[self.config.subcommand].model.as_dict()
            hparams = {"_class_path": model["class_path"], **model.get("init_args", {})}
            self.model.save_hyperparameters({**hparams, "_instantiator": "pytorch_lightning.cli.instantiate_module"}, logger=False)

    def before_fit(self) -> None:
        """Refuses an output folder that cannot be written, before anything is computed."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir).absolute()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            self.parser.error(
                f"Cannot write to {folder}: {existing} is no folder that this user may write to. "
                "Choose another with --trainer.default_root_dir or the logger's save_dir."
            )

    def after_fit(self) -> None:
        """Says where the checkpoints are."""
        checkpoint = self.trainer.checkpoint_callback
        if checkpoint is not None and getattr(checkpoint, "best_model_path", ""):
            say_where("Best checkpoint", Path(checkpoint.best_model_path))


def main(args: ArgsType = None) -> None:
    """Runs `lightning-recall fit|validate|test|predict`.

    Args:
        args: command line, without the program's name; None: that of the process.
    """
    RecallCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "lightning-recall"},
        args=args,
    )
