"""Validates checkpoint files before training, with a specific message for each wrong kind of file."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import LightningModule
from lightning_recall.cli.task_options import task_options

CKPT_KEYWORDS = ("best", "last", "hpc")  # special ckpt_path values of Lightning
SHARDED_CHECKPOINT_FILES = (".metadata", "meta.pt", "latest")  # files in the checkpoint folder of a sharded strategy
PYTHON_OBJECTS = "holds Python objects, which are not loaded because they could run any code"
WEIGHTS_HINT = "to load only its weights, pass --weights {} instead of --ckpt_path"


def is_local(ckpt_path: str) -> bool:
    """Whether `ckpt_path` is a path on this machine."""
    return (
        bool(ckpt_path)
        and ckpt_path not in CKPT_KEYWORDS
        and "://" not in ckpt_path
        and not ckpt_path.startswith("registry")
    )


def check_checkpoint(path: Path, subcommand: str, weights_only: bool | None = None) -> None:
    """Checks that a file is a checkpoint that Lightning can load.

    Args:
        path: checkpoint file, or checkpoint folder of a sharded strategy.
        subcommand: the subcommand that loads it; "fit" also needs the state of the optimizer.
        weights_only: as Lightning passes it to `torch.load`.

    Raises:
        ValueError: if the file is not a suitable checkpoint.
    """
    if path.is_dir() and any((path / name).exists() for name in SHARDED_CHECKPOINT_FILES):
        return
    content = read_file(path, weights_only is not False)
    if "pytorch-lightning_version" not in content:
        weights = weights_of(content)
        if weights:
            raise ValueError(f"{path} holds weights only; {WEIGHTS_HINT.format(path)}.")
        raise ValueError(f"{path} is not a checkpoint of Lightning; it holds {entries(content)}.")
    if subcommand == "fit" and "optimizer_states" not in content:
        raise ValueError(
            f"{path} was saved with save_weights_only, so its training cannot be resumed; {WEIGHTS_HINT.format(path)}."
        )


def load_weights(module: LightningModule, path: Path) -> None:
    """Loads the weights of a checkpoint or of a file with a state_dict into a new module.

    Raises:
        ValueError: if the file holds no weights, or weights that do not match the module.
    """
    content = read_file(path)
    weights = weights_of(content)
    if not weights:
        raise ValueError(f"{path} holds no weights of a module: it holds {entries(content)}.")
    ignored = {name for task in task_options() for name in task.TRAINING_STATE}
    new = {name: value for name, value in module.state_dict().items() if name in ignored}
    try:
        module.load_state_dict({**{name: value for name, value in weights.items() if name not in ignored}, **new})
    except RuntimeError as error:
        raise ValueError(f"{path} {mismatch_message(error)}") from error


def mismatch_message(error: RuntimeError) -> str:
    """Formats torch's error for mismatched weights."""
    details = " ".join(str(error).split("\n", 1)[-1].split())
    return f"holds weights that do not match the network or loss in the settings. {details}"


def read_file(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """Loads a torch file; tensors are memory-mapped."""
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*.ckpt"))
        raise ValueError(f"{path} is a folder: pass a checkpoint file{', such as ' + found[0] if found else ''}.")
    if path.suffix in (".safetensors", ".npz"):
        options = " or ".join(task.BACKBONE_OPTION for task in task_options())
        raise ValueError(f"{path} is not a checkpoint; pass backbone weights with {options}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: the process that saved it was interrupted, or the disk was full.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise  # its message is clear enough
    except Exception as error:  # the unpickler raises almost anything for a file of another kind
        raise ValueError(f"{path} {why_unreadable(path, str(error))}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(content).__name__}.")
    return content


def why_unreadable(path: Path, message: str) -> str:
    """Explains why torch cannot read a file, without torch's advice to set weights_only=False."""
    if "GLOBAL " in message:  # raised for classes that weights_only does not allow
        named = message.split("GLOBAL ")[-1].split()[0]
        return (
            f"holds Python objects ({named}), which are not loaded because they could run any code: save only the "
            "state_dict of its module with torch.save, and pass that file as --weights."
        )
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # torch writes zip files
    if is_zip:
        return "is truncated: it was not saved or copied completely. Use another checkpoint, or copy it again."
    return "is not a file that torch.save wrote: pass a checkpoint (.ckpt)."


def weights_of(content: dict[str, Any]) -> dict[str, Tensor] | None:
    """Returns the state_dict: `content["state_dict"]` or `content` itself; None if neither is one."""
    weights = content.get("state_dict", content)
    if isinstance(weights, dict) and weights and all(isinstance(value, Tensor) for value in weights.values()):
        return weights
    return None


def entries(content: dict[str, Any]) -> str:
    """Lists the first keys of a file's content."""
    return ", ".join(map(repr, list(content)[:5])) or "nothing"
