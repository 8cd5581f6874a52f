"""Chooses between `lightning.pytorch` and `pytorch_lightning`; the only file that uses their private APIs.

A Trainer of one rejects a module of the other. `PACKAGE` is the package in use, chosen by these rules:

1. If only one of the two is imported already, that one.
2. If neither is imported and only one is installed, that one.
3. Otherwise the one named by the environment variable LIGHTNING_RECALL_LIGHTNING; `pytorch_lightning` by default.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException as MisconfigurationException
    from pytorch_lightning import Callback as Callback
    from pytorch_lightning import LightningDataModule as LightningDataModule
    from pytorch_lightning import LightningModule as LightningModule
    from pytorch_lightning import Trainer as Trainer
    from pytorch_lightning import seed_everything as seed_everything
    from pytorch_lightning.callbacks import BaseFinetuning as BaseFinetuning
    from pytorch_lightning.callbacks import BatchSizeFinder as BatchSizeFinder
    from pytorch_lightning.callbacks import EarlyStopping as EarlyStopping
    from pytorch_lightning.callbacks import EMAWeightAveraging as EMAWeightAveraging
    from pytorch_lightning.callbacks import GradientAccumulationScheduler as GradientAccumulationScheduler
    from pytorch_lightning.callbacks import LambdaCallback as LambdaCallback
    from pytorch_lightning.callbacks import LearningRateFinder as LearningRateFinder
    from pytorch_lightning.callbacks import LearningRateMonitor as LearningRateMonitor
    from pytorch_lightning.callbacks import ModelCheckpoint as ModelCheckpoint
    from pytorch_lightning.callbacks import OnExceptionCheckpoint as OnExceptionCheckpoint
    from pytorch_lightning.cli import ArgsType as ArgsType
    from pytorch_lightning.cli import LightningArgumentParser as LightningArgumentParser
    from pytorch_lightning.cli import LightningCLI as LightningCLI
    from pytorch_lightning.cli import LRSchedulerCallable as LRSchedulerCallable
    from pytorch_lightning.cli import OptimizerCallable as OptimizerCallable
    from pytorch_lightning.cli import ReduceLROnPlateau as ReduceLROnPlateau
    from pytorch_lightning.cli import SaveConfigCallback as SaveConfigCallback
    from pytorch_lightning.loggers import CSVLogger as CSVLogger
    from pytorch_lightning.loggers import TensorBoardLogger as TensorBoardLogger
    from pytorch_lightning.strategies import DDPStrategy as DDPStrategy
    from pytorch_lightning.strategies import DeepSpeedStrategy as DeepSpeedStrategy
    from pytorch_lightning.strategies import FSDPStrategy as FSDPStrategy
    from pytorch_lightning.strategies import ModelParallelStrategy as ModelParallelStrategy
    from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
    from pytorch_lightning.utilities import rank_zero_info as rank_zero_info
    from pytorch_lightning.utilities import rank_zero_only as rank_zero_only
    from pytorch_lightning.utilities import rank_zero_warn as rank_zero_warn
    from pytorch_lightning.utilities.exceptions import _TunerExitException
    from pytorch_lightning.utilities.seed import isolate_rng as isolate_rng
    from pytorch_lightning.utilities.types import LRSchedulerConfig as LRSchedulerConfig

    MultiProcessingLauncher = _MultiProcessingLauncher
    TunerExitException = _TunerExitException

ENVIRONMENT_VARIABLE = "LIGHTNING_RECALL_LIGHTNING"
PACKAGES = ("pytorch_lightning", "lightning.pytorch")
PUBLIC_NAMES = {
    "": ("Callback", "LightningDataModule", "LightningModule", "Trainer", "seed_everything"),
    ".callbacks": (
        *("BaseFinetuning", "BatchSizeFinder", "EMAWeightAveraging", "EarlyStopping", "GradientAccumulationScheduler"),
        *("LambdaCallback", "LearningRateFinder", "LearningRateMonitor", "ModelCheckpoint", "OnExceptionCheckpoint"),
    ),
    ".cli": (
        *("ArgsType", "LRSchedulerCallable", "LightningArgumentParser", "LightningCLI", "OptimizerCallable"),
        *("ReduceLROnPlateau", "SaveConfigCallback"),
    ),
    ".loggers": ("CSVLogger", "TensorBoardLogger"),
    ".strategies": ("DDPStrategy", "DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"),
    ".utilities": ("rank_zero_info", "rank_zero_only", "rank_zero_warn"),
    ".utilities.exceptions": ("MisconfigurationException",),
    ".utilities.seed": ("isolate_rng",),
    ".utilities.types": ("LRSchedulerConfig",),
}
"""submodule of the package -> public names in it"""

PRIVATE_NAMES = {
    "MultiProcessingLauncher": (".strategies.launchers", "_MultiProcessingLauncher"),
    "TunerExitException": (".utilities.exceptions", "_TunerExitException"),
}
"""public alias -> (submodule of the package, private name in it)"""


def choose_package(imported: list[str], installed: list[str], environment: Mapping[str, str]) -> tuple[str, bool]:
    """Returns the package to use, and whether to log the choice: True if both are installed and the default was used.

    Args:
        imported: the `PACKAGES` that are imported.
        installed: the `PACKAGES` that are installed.
        environment: the environment variables of the process.

    Raises:
        ImportError: if neither is installed.
        ValueError: if the environment variable names neither.
    """
    given = environment.get(ENVIRONMENT_VARIABLE, "")
    preferred = {"": PACKAGES[0], "lightning": PACKAGES[1]}.get(given, given)
    if preferred not in PACKAGES:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be {' or '.join(PACKAGES)}, got {given!r}.")
    candidates = imported or installed
    if not candidates:
        raise ImportError("lightning_recall needs PyTorch Lightning: pip install pytorch-lightning")
    if preferred not in candidates:
        return candidates[0], False
    return preferred, len(candidates) > 1 and not imported and not given


def is_installed(package: str) -> bool:
    """Whether a package is installed; does not import it or its parent, which takes seconds."""
    parent, _, _ = package.rpartition(".")
    parent_spec = find_spec(parent) if parent else None
    if parent and parent_spec is None:
        return False
    path = parent_spec.submodule_search_locations if parent_spec else None
    return PathFinder.find_spec(package, path) is not None


PACKAGE, _is_default = choose_package(
    [*filter(sys.modules.get, PACKAGES)], [*filter(is_installed, PACKAGES)], os.environ
)
INSTANTIATORS = tuple(f"{package}.cli.instantiate_module" for package in PACKAGES)
INSTANTIATOR = f"{PACKAGE}.cli.instantiate_module"
"""the function that rebuilds a module from a checkpoint of `LightningCLI`"""
_LOCATIONS = {name: (submodule, name) for submodule, names in PUBLIC_NAMES.items() for name in names} | PRIVATE_NAMES


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports one of Lightning's names when it is first used."""
        if name not in _LOCATIONS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _log_choice()
        if name == "LightningModule":
            _accept_more_checkpoints()
        submodule, original = _LOCATIONS[name]
        return getattr(import_module(PACKAGE + submodule), original)


@cache
def _log_choice() -> None:
    """Logs once which package is used, if both are installed and the default decided."""
    if _is_default:
        import_module(f"{PACKAGE}.utilities").rank_zero_info(
            f"lightning_recall uses {PACKAGE}: lightning.pytorch and pytorch_lightning are both installed. To choose, "
            f"import the package that you use before lightning_recall, or set {ENVIRONMENT_VARIABLE}."
        )


@cache
def _accept_more_checkpoints() -> None:
    """Lets `load_from_checkpoint` load checkpoints of the other package, and of modules that were made in Python."""
    saving: Any = import_module(f"{PACKAGE}.core.saving")
    module: Any = import_module(f"{PACKAGE}.core.module")
    load_state, load = saving._load_state, module._load_from_checkpoint

    @wraps(load_state)
    def load_rebuilt(cls: type, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        settings = checkpoint.get("hyper_parameters")
        if isinstance(settings, dict) and settings.get("_instantiator") in INSTANTIATORS:
            settings["_instantiator"] = INSTANTIATOR  # Lightning rejects the other package's, which is identical
        elif hasattr(cls, "arguments_from_checkpoint"):
            kwargs = {**cls.arguments_from_checkpoint(checkpoint), **kwargs}
        return load_state(cls, checkpoint, *args, **kwargs)

    @wraps(load)
    def load_plain(cls: type, path: Any, device: Any, file: Any, strict: Any, weights_only: Any, **kwargs: Any) -> Any:
        if weights_only is None and any(base.__module__.startswith("lightning_recall.") for base in cls.__mro__):
            weights_only = True  # Lightning unpickles URLs by default, which can run any code
        return load(cls, path, device, file, strict, weights_only, **kwargs)

    saving._load_state, module._load_from_checkpoint = load_rebuilt, load_plain


class CLIHooks:
    """Mixin that makes a private method of LightningCLI a public hook; list it before LightningCLI."""

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would override the settings with the checkpoint's hyperparameters."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_subcommand(subcommand)

    def run_subcommand(self, subcommand: str) -> None:
        """Runs a method of the Trainer with the hooks before and after it."""
        super()._run_subcommand(subcommand)  # type: ignore[misc]  # defined by LightningCLI


def last_checkpoints(trainer: "Trainer") -> set[str]:
    """Paths that Lightning searches for `ckpt_path="last"`; some may not exist."""
    callbacks, module = callbacks_of(trainer), import_module(f"{PACKAGE}.callbacks")
    paths = {str(callback.ckpt_path) for callback in callbacks if isinstance(callback, module.OnExceptionCheckpoint)}
    for callback in callbacks:
        if isinstance(callback, module.ModelCheckpoint):
            paths |= {str(path) for path in callback._find_last_checkpoints(trainer) if path}
    return paths


def changes_learning_rate(finder: "LearningRateFinder") -> bool:
    """Whether a LearningRateFinder sets the learning rate that it finds."""
    return finder._update_attr


def callbacks_of(trainer: "Trainer") -> "list[Callback]":
    """The callbacks of a Trainer."""
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]  # set by Lightning


def hooks_without_logging() -> set[str]:
    """Hooks in which Lightning does not allow `log`."""
    validator = import_module(f"{PACKAGE}.trainer.connectors.logger_connector.fx_validator")._FxValidator
    return {hook for hook, rules in validator.functions.items() if rules is None}


class _DataloaderHooks:
    """Stands in for `Strategy.process_dataloader`: applies functions to a dataloader, then the strategy's method."""

    def __init__(self, trainer: "Trainer", original: Callable[[Any], Any]) -> None:
        self.trainer, self.original = trainer, original
        self.functions: list[Callable[[Any, Any], Any]] = []

    def __call__(self, loader: Any) -> Any:
        for function in self.functions:
            loader = function(self.trainer, loader)
        return self.original(loader)


def add_dataloader_hook(trainer: "Trainer", function: "Callable[[Trainer, Any], Any]") -> None:
    """Calls `function(trainer, loader)` for every dataloader from now on; Lightning uses the returned dataloader.

    Lightning passes each dataloader to `Strategy.process_dataloader` after it has set up the distributed sampler, and
    before it reads the number of batches. The function is called at this point, in training and evaluation. Functions
    are called in the order in which they were added; a function is never added twice.
    """
    strategy: Any = trainer.strategy
    hooks = vars(strategy).get("process_dataloader")
    if not isinstance(hooks, _DataloaderHooks):
        hooks = strategy.process_dataloader = _DataloaderHooks(trainer, strategy.process_dataloader)
    if function not in hooks.functions:
        hooks.functions.append(function)


def remove_dataloader_hook(trainer: "Trainer", function: "Callable[[Trainer, Any], Any]") -> None:
    """Undoes `add_dataloader_hook`; removing the last function restores the strategy's method."""
    strategy: Any = trainer.strategy
    hooks = vars(strategy).get("process_dataloader")
    if isinstance(hooks, _DataloaderHooks):
        hooks.functions = [added for added in hooks.functions if added != function]
        if not hooks.functions:
            del strategy.process_dataloader


def unwrapped_batch_sampler(batch_sampler: Any) -> Any:
    """A batch sampler without the wrapper with which Lightning records batch indices during `predict`."""
    return getattr(batch_sampler, "_batch_sampler", batch_sampler)


def is_fast_dev_run(trainer: "Trainer") -> bool:
    """Whether `fast_dev_run` is on."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by Lightning


def backward_is_skipped(trainer: "Trainer") -> bool:
    """Whether this epoch skips backward: StochasticWeightAveraging adds an epoch that only updates BatchNorm."""
    return bool(getattr(trainer.fit_loop, "_skip_backward", False))


def saves_by_time(callback: "Callback") -> bool:
    """Whether a ModelCheckpoint has a `train_time_interval`."""
    return getattr(callback, "_train_time_interval", None) is not None


def batch_size_attribute(finder: "BatchSizeFinder") -> str:
    """Name of the attribute that a BatchSizeFinder changes."""
    return str(finder._batch_arg_name)


def uses_static_graph(strategy: object) -> bool:
    """Whether a strategy is DDP with `static_graph=True`."""
    return bool(getattr(strategy, "_ddp_kwargs", {}).get("static_graph", False))


def averages_weights(callback: "Callback") -> bool:
    """Whether a callback is a WeightAveraging, such as EMAWeightAveraging."""
    return isinstance(callback, import_module(f"{PACKAGE}.callbacks").WeightAveraging)


def averaged_module(trainer: "Trainer") -> "LightningModule | None":
    """The copy of the module that holds the averaged weights of this training; None if no callback averages them."""
    models = [vars(callback)["_average_model"] for callback in callbacks_of(trainer) if averages_weights(callback)]
    return models[0].module if models and models[0] is not None else None


def attached_trainer(module: "LightningModule") -> "Trainer | None":
    """The Trainer of a module; None if it has none, as in `load_from_checkpoint`."""
    return module._trainer
