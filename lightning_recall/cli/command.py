"""The command `lightning-recall`: Lightning's CLI over retrieval modules, data modules and callbacks."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # loaded lazily

# Imported so that configs can name their classes without a module: `class_path: RetrievalModule`.
from lightning_recall import callbacks, datamodules, losses, mixup, models, modules  # noqa: F401  # for their names
from lightning_recall._lightning import (
    ArgsType,
    CSVLogger,
    LearningRateFinder,
    LightningArgumentParser,
    LightningCLI,
    LightningDataModule,
    LightningModule,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    SaveConfigCallback,
    Trainer,
    callbacks_of,
    rank_zero_info,
)
from lightning_recall.callbacks.output import free_paths, keeps_files, output_path, print_path, run_folder
from lightning_recall.cli.checkpoints import check_checkpoint, is_local, load_weights, other_network
from lightning_recall.cli.errors import USER_ERRORS, explain
from lightning_recall.cli.help import VERBOSE, Parser, name_subcommands, texts
from lightning_recall.cli.subclasses import listed_once


def chunk_to_load(chunk_size: int | str) -> int:
    """Images that a worker loads at a time; while the module has yet to find its own chunk size, enough to try with."""
    return 512 if isinstance(chunk_size, str) else chunk_size


def without_download(model: Any) -> None:
    """Has a model whose weights come from a checkpoint built without those that timm would fetch first.

    Args:
        model: settings with `init_args`, which are changed.
    """
    embedder: Any = (model.get("init_args") or {}).get("embedder")
    settings = embedder.get("init_args") if hasattr(embedder, "get") else None
    if settings and settings.get("pretrained"):
        frozen = settings.get("freeze_batch_norm")
        settings["freeze_batch_norm"] = isinstance(settings.get("backbone"), str) if frozen is None else frozen
        settings["pretrained"] = False


def expand_pretrained(model: Any) -> None:
    """Expands `~` in the embedder's file of weights, which no shell has seen.

    Args:
        model: settings with `init_args`, which are changed.
    """
    embedder: Any = (model.get("init_args") or {}).get("embedder")
    settings = embedder.get("init_args") if hasattr(embedder, "get") else None
    if settings and isinstance(settings.get("pretrained"), str):
        settings["pretrained"] = os.path.expanduser(settings["pretrained"])


def has_last_checkpoint(trainer: Trainer) -> bool:
    """Whether `ckpt_path="last"` would find a checkpoint."""
    paths: set[Any] = set()
    for callback in callbacks_of(trainer):
        if isinstance(callback, ModelCheckpoint):
            paths |= callback._find_last_checkpoints(trainer)
        elif isinstance(callback, OnExceptionCheckpoint):
            paths.add(callback.ckpt_path)
    return any(Path(path).exists() for path in paths if path)


class SaveSettings(SaveConfigCallback):
    """Writes config.yaml to the run's folder, and has checkpoints hold what builds their module.

    A file of that name which another run wrote stays as it is: this one is called config-1.yaml then.

    RetrievalModule cannot add itself what `load_from_checkpoint` builds it with: outside this command its arguments are
    networks, which a checkpoint should not hold twice.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the settings once."""
        if self.already_saved:
            return
        self.already_saved = True
        path = output_path(trainer, self.config_filename)  # asks all processes
        if trainer.is_global_zero:
            (free,) = free_paths(path)
            self.parser.save(self.config, free, skip_unset=False, multifile=self.multifile)
            if free != path:
                print_path("Settings, beside those of another run", free)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the model's settings, unless the module has saved hyperparameters of its own."""
        model = self.config.model.as_dict()
        without_download(model)
        settings = {**model.get("init_args", {}), "_class_path": model["class_path"]}
        settings["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
        checkpoint.setdefault(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, settings)


class RecallCLI(LightningCLI):
    """LightningCLI that refuses a run whose results could not be kept, and whose checkpoints rebuild their module."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As LightningCLI's, with short help."""
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file of settings; may be repeated.")
        return parser

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """As LightningCLI's, with texts of our own."""
        super().setup_parser(*args, **kwargs)
        name_subcommands(self.parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Loads in the chunks in which the module embeds, where both know of chunks."""
        about_weights = "File of weights to start from: a checkpoint, or a state_dict. A training starts anew."
        parser.add_argument("--weights", type=str | None, default=None, help=about_weights)
        parser.link_arguments("model.init_args.chunk_size", "data.init_args.chunk_size", compute_fn=chunk_to_load)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; scores are shown once, by RetrievalEvaluation, and embeddings kept once, by EmbeddingWriter."""
        parser.set_defaults({"test.verbose": False, "validate.verbose": False, "predict.return_predictions": False})
        parser.set_defaults({f"{name}.trainer.enable_model_summary": False for name in self.subcommands()})
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Leaves the settings as they are given: Lightning would overrule them by those in the checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Refuses checkpoints that are not there, or that a new process cannot find: it would test new weights."""
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        for name in ("ckpt_path", "weights"):
            config[name] = os.path.expanduser(config[name]) if config.get(name) else None
        ckpt_path, weights = config.ckpt_path or "", config.weights
        if ckpt_path and weights:
            self.parser.error("Give either --ckpt_path, to go on, or --weights, to start anew, not both.")
        if ckpt_path == "best" or (ckpt_path == "last" and subcommand != "fit"):
            self.parser.error(f"--ckpt_path {ckpt_path} is known only to the process that trained: give a file's path.")
        given = weights or (ckpt_path if is_local(ckpt_path) else None)
        if given and not Path(given).exists():
            self.parser.error(f"--{'weights' if weights else 'ckpt_path'} {given}: there is no such file.")
        if given and not weights:
            check_checkpoint(Path(given), subcommand, config.get("weights_only"))
        expand_pretrained(config.model)
        called = config.trainer.callbacks or []
        called = called if isinstance(called, list) else [called]
        scores_start = any((callback.get("init_args") or {}).get("baselines") for callback in called)
        if weights or (ckpt_path and not scores_start):
            without_download(config.model)
        if subcommand != "fit" and not (weights or ckpt_path):
            rank_zero_info("No --ckpt_path is given: the model is taken as it was initialised.")

    def _run_subcommand(self, subcommand: str) -> None:
        """Names the checkpoint whose weights do not fit."""
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise ValueError(f"{self.config[subcommand].ckpt_path} {other_network(error)}") from error

    def instantiate_classes(self) -> None:
        """Loads the weights to start from; refuses to start anew where a training was to be resumed."""
        super().instantiate_classes()
        config = self.config[self.config.subcommand]
        called = callbacks_of(self.trainer)
        changes = [part for part in called if isinstance(part, LearningRateFinder) and part._update_attr]
        if changes and self.config.subcommand == "fit":
            self.parser.error(
                f"{type(changes[0]).__name__} would train with a learning rate that config.yaml does not state: take "
                "LearningRateSuggestion, which prints one, and set it as lr of the optimizer."
            )
        if config.weights:
            load_weights(self.model, Path(config.weights))
        if config.ckpt_path == "last" and not has_last_checkpoint(self.trainer):
            self.parser.error(
                "--ckpt_path last: there is no last checkpoint in the folders of this run's callbacks. Give a file's "
                "path, or leave --ckpt_path out to start anew."
            )

    def before_fit(self) -> None:
        """Refuses an output folder that cannot be written, or whose metrics would be lost, before all computation."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir).absolute()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            self.parser.error(
                f"Cannot write to {folder}: {existing} is no folder that this user may write to. "
                "Choose another with --trainer.default_root_dir or the logger's save_dir."
            )
        keeps = keeps_files(self.trainer)
        if keeps and self.trainer.is_global_zero:
            self.refuse_used_loggers()
        run = run_folder(self.trainer) if keeps else Path()  # chosen before a launcher starts processes
        for checkpoints in self.trainer.checkpoint_callbacks:
            if not keeps:
                checkpoints.save_last = None  # type: ignore[attr-defined]  # Lightning 2.6 would leave a last.ckpt
            elif isinstance(checkpoints, ModelCheckpoint) and checkpoints.dirpath is None:
                checkpoints.dirpath = str(run / "checkpoints")

    before_validate = before_test = before_predict = before_fit

    def refuse_used_loggers(self) -> None:
        """Refuses a CSVLogger that would delete the metrics of another run: one with a version that was used before."""
        for logger in self.trainer.loggers:
            metrics = Path(logger.log_dir or "", "metrics.csv") if isinstance(logger, CSVLogger) else None
            if metrics is not None and metrics.exists():
                self.parser.error(
                    f"{metrics} holds the metrics of another run, which CSVLogger would delete: leave out the logger's "
                    "version, or give another."
                )

    def after_fit(self) -> None:
        """Says where the results are."""
        checkpoints = self.trainer.checkpoint_callback
        best = getattr(checkpoints, "best_model_path", "") or getattr(checkpoints, "last_model_path", "")
        if best and self.trainer.is_global_zero and keeps_files(self.trainer):
            print_path("Checkpoint", Path(best))
        self.after_test()

    def after_test(self) -> None:
        """Says where the results are."""
        if keeps_files(self.trainer):
            folder = run_folder(self.trainer)  # asks all processes
            if self.trainer.is_global_zero:
                print_path("Metrics and settings", folder)

    after_validate = after_test


def hide_noise() -> None:
    """Hides warnings of Lightning's that a user of this command can do nothing about."""
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 meets torch 2.13 and later
        "torch.distributed.nn.functional.* is deprecated.*",  # likewise
        "Using `DistributedSampler` with the dataloaders.*",  # RetrievalEvaluation counts its repeated images once
        "The dirpath has changed from.*",  # every run has a folder of its own
        "Found .* in eval mode at the start of training.*",  # BatchNorm that is frozen on purpose
        "Total length of `list` across ranks is zero.*",  # val_classes: 0 asks for no validation
        "Using ModelCheckpoint with manual optimization.*",  # the state after the step is the one to resume from
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(no_tip)


def no_tip(record: logging.LogRecord) -> bool:
    """Whether a line is none of Lightning's advertisements."""
    return "Tip: For seamless cloud" not in record.getMessage()


def main(args: ArgsType = None) -> None:
    """Runs `lightning-recall fit|validate|test|predict`.

    Args:
        args: command line, without the program's name; None: that of the process.
    """
    hide_noise()
    with listed_once():
        RecallCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveSettings,
            parser_kwargs=texts(),
            trainer_defaults={"callbacks": [callbacks.RunSummary(), callbacks.InterruptCheckpoint()]},
            args=args,
        )


def run() -> None:
    """The console's command: `main`, with errors that a user can cause in one paragraph, and exit code 1.

    With LIGHTNING_RECALL_VERBOSE=1 in the environment they show where they happened.
    """
    if os.environ.get(VERBOSE):
        return main()
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    try:
        main()
    except USER_ERRORS as error:
        sys.stderr.write(f"lightning-recall: error: {explain(error)}\n({VERBOSE}=1 shows where it happened.)\n")
        sys.exit(1)
