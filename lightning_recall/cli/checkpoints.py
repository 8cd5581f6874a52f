"""Checkpoint files, looked at before anything is computed: one sentence for each thing that a file may be instead."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import LightningModule

WORDS = ("best", "last", "hpc")  # that Lightning takes instead of a path
SHARDED = (".metadata", "meta.pt", "latest")  # files in the folder that a sharding strategy saves as a checkpoint
DRAWS = "mixup._extra_state"  # where the draws of SimilarityMixup stand, which start anew with the training
TO_START = "its weights alone can be loaded: --weights {} instead of --ckpt_path"


def is_local(ckpt_path: str) -> bool:
    """Whether a checkpoint is given as a path on this machine."""
    return (
        bool(ckpt_path) and ckpt_path not in WORDS and "://" not in ckpt_path and not ckpt_path.startswith("registry")
    )


def check_checkpoint(path: Path, subcommand: str, weights_only: bool | None = None) -> None:
    """Looks at a checkpoint that Lightning is to load.

    Args:
        path: of a file, or of the folder of a sharding strategy.
        subcommand: what it is loaded for; "fit" needs the state of the optimizer, too.
        weights_only: as Lightning passes it to `torch.load`.

    Raises:
        ValueError: if the file is something else.
    """
    if path.is_dir() and any((path / name).exists() for name in SHARDED):
        return
    content = read_file(path, weights_only is not False)
    if "pytorch-lightning_version" not in content:
        weights = weights_of(content)
        what = "holds weights only" if weights else f"is no checkpoint of Lightning; it holds {entries(content)}"
        raise ValueError(f"{path} {what}{'; ' + TO_START.format(path) if weights else ''}.")
    if subcommand == "fit" and "optimizer_states" not in content:
        raise ValueError(
            f"{path} was saved with save_weights_only, so that its training cannot be resumed; {TO_START.format(path)}."
        )


def load_weights(module: LightningModule, path: Path) -> None:
    """Loads the weights of a checkpoint or of a file with a state_dict into a new module.

    Raises:
        ValueError: if the file is neither, or its weights are of another network or loss.
    """
    content = read_file(path)
    weights = weights_of(content)
    if not weights:
        raise ValueError(f"{path} holds no weights of a module: it holds {entries(content)}.")
    own = {name: value for name, value in module.state_dict().items() if name == DRAWS}
    try:
        module.load_state_dict({**{name: value for name, value in weights.items() if name != DRAWS}, **own})
    except RuntimeError as error:
        raise ValueError(f"{path} {other_network(error)}") from error


def other_network(error: RuntimeError) -> str:
    """What torch says of weights that do not fit."""
    details = " ".join(str(error).split("\n", 1)[-1].split())
    return f"holds the weights of another network or loss than the settings describe. {details}"


def read_file(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """What torch has saved in a file; large tensors stay there."""
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*.ckpt"))
        raise ValueError(f"{path} is a folder: give a checkpoint file{', such as ' + found[0] if found else ''}.")
    if path.suffix in (".safetensors", ".npz"):
        raise ValueError(f"{path} is no checkpoint; weights of a backbone are given as --model.embedder.pretrained.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: the process that saved it was interrupted, or the disk was full.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise  # its message says it all
    except (UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:  # as torch finds garbage
        raise ValueError(f"{path} {why_unreadable(path, str(error))}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(content).__name__}.")
    return content


def why_unreadable(path: Path, message: str) -> str:
    """Why torch cannot read a file, without its advice to run the code in it."""
    if "GLOBAL " in message:  # of an object that is not allowed, or whose module is blocked
        named = message.split("GLOBAL ")[-1].split()[0]
        return (
            f"holds Python objects ({named}), which are not loaded, since they could run any code: save the state_dict "
            "of its module alone, with torch.save, and give that file as --weights."
        )
    with path.open("rb") as file:
        started = file.read(2) == b"PK"  # a zip file, as torch writes it
    if started:
        return "is cut off: it was not saved or copied completely. Take another checkpoint, or copy it again."
    return "is not a file that torch has saved: give a checkpoint (.ckpt)."


def weights_of(content: dict[str, Any]) -> dict[str, Tensor] | None:
    """The state_dict in what a file holds, or that it is; None if there is none."""
    weights = content.get("state_dict", content)
    named = isinstance(weights, dict) and weights and all(isinstance(value, Tensor) for value in weights.values())
    return weights if named else None


def entries(content: dict[str, Any]) -> str:
    """The first keys of what a file holds."""
    return ", ".join(map(repr, list(content)[:5])) or "nothing"
