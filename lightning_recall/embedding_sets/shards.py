"""Reads and writes embedding shards atomically, each with a hash of the model and data that produced it."""

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE = "state"  # key in the metadata of a safetensors shard: hash of the model and data that produced the shard


def load_embeddings(folder: str | Path) -> dict[str, Tensor]:
    """Loads the output of `EmbeddingWriter`: embeddings (N, D), ids (N,) and, if available, labels (N,), sorted by id.

    Raises:
        ValueError: if the folder has no shards, a shard is damaged, or the shards come from different models or data.
    """
    folder = Path(folder).expanduser()
    paths = found_shards(folder)
    shards = [load_shard(path) for path in paths]
    check_same_origin(folder, paths, [signature_of(path, shard) for path, shard in zip(paths, shards, strict=True)])
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    order = joined["ids"].argsort(stable=True)
    ids = joined["ids"][order]
    order = order[torch.cat([ids[:1] == ids[:1], ids[1:] != ids[:-1]])]  # drop duplicate ids
    return {name: values[order] for name, values in joined.items()}


def found_shards(folder: Path) -> list[Path]:
    """Paths of the shards in a folder; raises ValueError if there are none."""
    paths = shard_paths(folder)
    if not paths:
        inner = sorted({path.parent.name for path in folder.glob("*/shard-*")})
        hint = (
            f"pass one of its folders {', '.join(inner)}"
            if inner
            else "it should hold files such as shard-00-00000.npz"
        )
        raise ValueError(f"There are no embeddings in {folder}: {hint}.")
    return paths


def check_same_origin(folder: Path, paths: list[Path], signatures: list[Any]) -> None:
    """Raises ValueError if shards of a folder have different signatures."""
    for path, signature in zip(paths, signatures, strict=True):
        if signature != signatures[0]:
            raise ValueError(
                f"{paths[0].name} and {path.name} in {folder} come from different weights, data or settings: "
                "delete the shards of the other model or data."
            )


def signature_of(path: Path, shard: Mapping[str, Any]) -> Any:
    """Signature that all shards of a folder must share; shards of earlier versions have no state hash."""
    embeddings = shard["embeddings"]
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            state_hash = (file.metadata() or {}).get(STATE, "")
    else:
        with zipfile.ZipFile(path) as archive:
            state_hash = archive.comment.decode()
    dtype = str(embeddings.dtype).removeprefix("torch.")
    return sorted(shard), embeddings.shape[1:], dtype, state_hash


def shard_paths(folder: Path) -> list[Path]:
    """Paths of the shards in a folder."""
    return sorted(path for path in folder.glob("shard-*") if path.suffix in (".npz", ".safetensors"))


READ_ERRORS = (OSError, EOFError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile, zlib.error)
"""what reading a damaged file raises"""


def load_shard(path: Path) -> dict[str, Tensor]:
    """The arrays of one shard.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        arrays = read_arrays(path)
        is_consistent = len(arrays["embeddings"]) == len(arrays["ids"])
    except READ_ERRORS as error:
        raise ValueError(f"{path} is damaged: delete it and run predict again to recompute it.") from error
    if not is_consistent:
        raise ValueError(f"{path} is damaged: it has {len(arrays['ids'])} ids, {len(arrays['embeddings'])} embeddings.")
    return arrays


def read_arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of a .npz or .safetensors file; raises one of `READ_ERRORS` if it is damaged."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as raw, np.load(raw) as file:  # np.load(path) leaks the file handle if it raises
        return {name: torch.from_numpy(file[name]) for name in file.files}


def save_shard(folder: Path, rank: int, suffix: str, arrays: dict[str, Tensor], state_hash: str) -> None:
    """Writes the next shard of a rank, with the hash in the zip comment ("npz") or in the metadata ("safetensors")."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"shard-{rank:02}-*")]
    path = folder / f"shard-{rank:02}-{max(numbers, default=-1) + 1:05}.{suffix}"

    def write(unfinished: Path) -> None:
        if suffix == "safetensors":
            save_file(arrays, unfinished, {STATE: state_hash})
            return
        as_numpy: dict[str, Any] = {name: values.numpy() for name, values in arrays.items()}
        np.savez(unfinished, **as_numpy)
        with zipfile.ZipFile(unfinished, "a") as archive:
            archive.comment = state_hash.encode()

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file atomically: `write` gets a temporary path, which then replaces `path`."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    os.replace(unfinished, path)
