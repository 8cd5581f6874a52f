"""The command `lightning-recall`: Lightning's CLI with checks before the run and short messages."""

import os
import sys
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from jsonargparse import Namespace

from lightning_recall._lightning import (
    ArgsType,
    CLIHooks,
    CSVLogger,
    LearningRateFinder,
    LightningArgumentParser,
    LightningCLI,
    LightningDataModule,
    LightningModule,
    ModelCheckpoint,
    Trainer,
    callbacks_of,
    changes_learning_rate,
    last_checkpoints,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_recall.callbacks.output import print_path, run_folder, writes_files
from lightning_recall.cli.callback_options import (
    add_callback_options,
    evaluation_settings,
    scores_start_of_checkpoint,
    share_settings,
    with_optional,
)
from lightning_recall.cli.checkpoints import PYTHON_OBJECTS, check_checkpoint, is_local, load_weights, mismatch_message
from lightning_recall.cli.class_help import asked_help, class_help
from lightning_recall.cli.help import CommandParser, complete_overview, parser_descriptions
from lightning_recall.cli.last_as_best import LastAsBest
from lightning_recall.cli.noise import hide_advice_on_callbacks, hide_noise
from lightning_recall.cli.saved_settings import SaveSettings
from lightning_recall.cli.subclasses import cached_subclass_lists
from lightning_recall.cli.suggestions import advise
from lightning_recall.cli.task_checks import check_tasks, chosen_links
from lightning_recall.cli.task_options import (
    default_callbacks,
    disable_pretrained,
    expand_model_files,
    import_classes,
    restore_none,
    settings_of_classes,
    task_options,
)
from lightning_recall.cli.user_errors import explain


class Parser(CommandParser, LightningArgumentParser):
    """The parser of a run."""

    def add_function_arguments(self, function: Any, *args: Any, linked_targets: Any = None, **kwargs: Any) -> list[str]:
        """Same as jsonargparse's, which raises TypeError for a function beside a class with linked settings."""
        return super().add_function_arguments(function, *args, **kwargs)


class RecallCLI(CLIHooks, LightningCLI):
    """LightningCLI that checks output paths and checkpoints before the run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = kwargs.get("args")
        self.arguments: list[str] = sys.argv[1:] if given is None else given if isinstance(given, list) else []
        super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Same as LightningCLI.init_parser, with a shorter help text."""
        return Parser(**kwargs)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Same as LightningCLI.setup_parser, with --version and this package's subcommand descriptions."""
        super().setup_parser(*args, **kwargs)
        complete_overview(self.parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds --weights, and the linked settings of the task."""
        about_weights = (
            "File of weights to start from: a checkpoint or a state_dict. Training starts from epoch 0 with a new "
            "optimizer."
        )
        parser.add_argument("--weights", type=str | None, default=None, help=about_weights)
        for (source, target), compute in chosen_links(self.arguments).items():
            parser.link_arguments(source, target, compute_fn=compute)
        add_callback_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Sets defaults that avoid printing scores and storing predictions twice, then parses.

        Callbacks print the scores and write the predictions to files. Classes of different tasks in one run are an
        error.
        """
        parser.set_defaults({"test.verbose": False, "validate.verbose": False, "predict.return_predictions": False})
        parser.set_defaults({f"{name}.trainer.enable_model_summary": False for name in self.subcommands()})
        subcommand = next((name for name in self.arguments if name in self.subcommands()), None)
        if subcommand is not None:
            self.prepare(subcommand, self.arguments)
        super().parse_arguments(parser, args)
        share_settings(self.config[self.config.subcommand], self.arguments)
        check_tasks(self.config[self.config.subcommand], self.arguments)

    def prepare(self, subcommand: str, args: list[str]) -> None:
        """Lets errors suggest options, and prints the help of a --*.help option."""
        subparser = self._subcommand_parsers[subcommand]
        for parser in (self.parser, subparser):
            parser.advise = partial(advise, parser=subparser, subcommand=subcommand, args=args)  # type: ignore[attr-defined]  # of our Parser
        asked = asked_help(args)
        if not asked:
            return
        found = class_help(subparser, args[args.index(subcommand) + 1 :])
        if found is None:
            subparser.error(f"unrecognized arguments: --{asked}")
        elif isinstance(found, str):
            sys.stdout.write(f"{found}\n")
            sys.exit(0)
        self.parser.parse_args([subcommand, *found])  # prints the help and exits

    def before_instantiate_classes(self) -> None:
        """Checks that the files of --ckpt_path and --weights exist; rejects "best".

        Only the process that trained can resolve "best".
        """
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        for name in ("ckpt_path", "weights"):
            config[name] = os.path.expanduser(config[name]) if config.get(name) else None
        ckpt_path, weights = config.ckpt_path or "", config.weights
        if ckpt_path and weights:
            self.parser.error("Pass --ckpt_path to resume or --weights to start a new training, not both.")
        if ckpt_path == "best" or (ckpt_path == "last" and subcommand != "fit"):
            self.parser.error(
                f"--ckpt_path {ckpt_path} is known only to the process that trained: pass the path of a file."
            )
        if "://" in ckpt_path and config.get("weights_only") is None:
            config.weights_only = True  # Lightning's default for remote files is to unpickle them
        given = weights or (ckpt_path if is_local(ckpt_path) else None)
        if given and not Path(given).exists():
            self.parser.error(f"--{'weights' if weights else 'ckpt_path'} {given}: there is no such file.")
        if given and not weights:
            check_checkpoint(Path(given), subcommand, config.get("weights_only"))
        restore_none(config.model)
        expand_model_files(config.model)
        if weights or (ckpt_path and not scores_start_of_checkpoint(subcommand, config)):
            disable_pretrained(config.model)
        if subcommand != "fit" and not (weights or ckpt_path):
            rank_zero_info("No --ckpt_path is given: the model uses its initial weights.")

    def run_subcommand(self, subcommand: str) -> None:
        """Adds the checkpoint's path to the errors for mismatched weights, and for objects in a remote file."""
        if subcommand != "fit":
            hide_advice_on_callbacks()
        try:
            super().run_subcommand(subcommand)
        except UnpicklingError as error:
            raise ValueError(f"{self.config[subcommand].ckpt_path} {PYTHON_OBJECTS}.") from error
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise ValueError(f"{self.config[subcommand].ckpt_path} {mismatch_message(error)}") from error

    def instantiate_classes(self) -> None:
        """Builds the data before the model, loads --weights, and rejects a --ckpt_path last without a checkpoint."""
        config = self.config[self.config.subcommand]
        data_settings = config.data
        subcommand: str = self.config.subcommand
        data_alone = Namespace({"subcommand": subcommand, f"{subcommand}.data": data_settings})  # type: ignore[no-untyped-call]  # of jsonargparse
        config.data = self.parser.instantiate(data_alone)[subcommand].data
        if callable(getattr(config.data, "check_data", None)):
            config.data.check_data()
        try:
            self.build_model()
        finally:
            config.data = data_settings
        self.check_callbacks()
        if config.weights:
            load_weights(self.model, Path(config.weights))
        if config.ckpt_path == "last" and not any(Path(path).exists() for path in last_checkpoints(self.trainer)):
            self.parser.error(
                "--ckpt_path last: there is no last checkpoint in the folders of this run's callbacks. Pass the path "
                "of a file, or omit --ckpt_path to start a new training."
            )

    def build_model(self) -> None:
        """Builds the model and the Trainer; a test of a checkpoint omits baselines whose weights cannot be loaded."""
        config = self.config[self.config.subcommand]
        try:
            super().instantiate_classes()
        except (ValueError, OSError) as error:
            loads = [settings for settings in settings_of_classes(config.model) if settings.get("pretrained")]
            if not (loads and scores_start_of_checkpoint(self.config.subcommand, config)):
                raise
            rank_zero_warn(f"The baselines are omitted: {explain(error)}")
            disable_pretrained(config.model)
            for task in task_options():
                task.disable_baselines(evaluation_settings(config))
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks with options of their own, unless trainer.callbacks has them."""
        built = self.config_init[self.config.subcommand]
        return super().instantiate_trainer(
            callbacks=with_optional(built.trainer.callbacks, built, self.model), **kwargs
        )

    def check_callbacks(self) -> None:
        """Raises an error if a LearningRateFinder sets the learning rate in fit."""
        finders = [callback for callback in callbacks_of(self.trainer) if isinstance(callback, LearningRateFinder)]
        changing = [finder for finder in finders if changes_learning_rate(finder)]
        if changing and self.config.subcommand == "fit":
            self.parser.error(
                f"{type(changing[0]).__name__} changes the learning rate without recording it in config.yaml: use "
                "LearningRateSuggestion, which prints a learning rate, and set it as lr of the optimizer."
            )

    def before_fit(self) -> None:
        """Checks before the run that the output folder is writable and no metrics are overwritten."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir).absolute()
        nearest_existing_parent = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not nearest_existing_parent.is_dir() or not os.access(nearest_existing_parent, os.W_OK):
            self.parser.error(
                f"Cannot write to {folder}: {nearest_existing_parent} is not a writable folder. Choose another with "
                "--trainer.default_root_dir or the logger's save_dir."
            )
        writes = writes_files(self.trainer)
        if writes and self.trainer.is_global_zero:
            self.check_metrics_not_overwritten()
        run = run_folder(self.trainer) if writes else Path()  # chosen before a launcher starts processes
        for checkpoint_callback in self.trainer.checkpoint_callbacks:
            if not writes:
                checkpoint_callback.save_last = None  # type: ignore[attr-defined]  # Lightning 2.6 would write last.ckpt
            elif isinstance(checkpoint_callback, ModelCheckpoint) and checkpoint_callback.dirpath is None:
                checkpoint_callback.dirpath = str(run / "checkpoints")

    before_validate = before_test = before_predict = before_fit

    def check_metrics_not_overwritten(self) -> None:
        """Raises an error if CSVLogger would overwrite the metrics of a run with the same version."""
        for logger in self.trainer.loggers:
            metrics = Path(logger.log_dir or "", "metrics.csv") if isinstance(logger, CSVLogger) else None
            if metrics is not None and metrics.exists():
                self.parser.error(
                    f"{metrics} holds the metrics of another run, which CSVLogger would delete: omit the logger's "
                    "version, or choose another."
                )

    def after_fit(self) -> None:
        """Prints where the checkpoint and the other results are."""
        callback = self.trainer.checkpoint_callback
        best = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
        if best and self.trainer.is_global_zero and writes_files(self.trainer):
            print_path("Checkpoint", Path(best))
        self.after_test()

    def after_test(self) -> None:
        """Prints where the results are."""
        if writes_files(self.trainer):
            folder = run_folder(self.trainer)  # collective call: must run on every process
            if self.trainer.is_global_zero:
                print_path("Metrics and settings", folder)

    after_validate = after_test


def execute(args: ArgsType = None) -> None:
    """Runs `lightning-recall fit|validate|test|predict`.

    Args:
        args: arguments without the program name; None: `sys.argv[1:]`.
    """
    hide_noise()
    import_classes()
    with cached_subclass_lists():
        RecallCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveSettings,
            parser_kwargs=parser_descriptions(),
            trainer_defaults={"callbacks": [*default_callbacks(), LastAsBest()]},
            args=args,
        )
