"""Files of embeddings: shards that are whole or not there, and the state of model and data that they were made in."""

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE = "state"  # metadata of a shard: the hash of the state that it was made in


def load_embeddings(folder: str | Path) -> dict[str, Tensor]:
    """What `EmbeddingWriter` wrote: embeddings (N, D), ids (N,) and, if they were known, labels (N,), ordered by id.

    Raises:
        ValueError: if there is no such file in the folder, one is damaged, or they were made in different states of
            model and data.
    """
    folder = Path(folder).expanduser()
    paths = shard_paths(folder)
    if not paths:
        inner = sorted({path.parent.name for path in folder.glob("*/shard-*")})
        where = (
            f"give one of its folders {', '.join(inner)}"
            if inner
            else "it should hold files such as shard-00-00000.npz"
        )
        raise ValueError(f"There are no embeddings in {folder}: {where}.")
    shards = [load_shard(path) for path in paths]
    kinds = [kind_of(path, shard) for path, shard in zip(paths, shards, strict=True)]
    for path, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            raise ValueError(
                f"{paths[0].name} and {path.name} in {folder} were made with different weights, data or settings: "
                "delete those that do not belong there."
            )
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    order = joined["ids"].argsort(stable=True)
    ids = joined["ids"][order]
    order = order[torch.cat([ids[:1] == ids[:1], ids[1:] != ids[:-1]])]  # each once, if some were embedded again
    return {name: values[order] for name, values in joined.items()}


def kind_of(path: Path, shard: dict[str, Tensor]) -> Any:
    """What all shards of a folder have in common; those of earlier versions do not name the state they were made in."""
    embeddings = shard["embeddings"]
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            state = (file.metadata() or {}).get(STATE, "")
    else:
        with zipfile.ZipFile(path) as archive:
            state = archive.comment.decode()
    return sorted(shard), embeddings.shape[1:], embeddings.dtype, state


def shard_paths(folder: Path) -> list[Path]:
    """Files of embeddings in a folder."""
    return sorted(path for path in folder.glob("shard-*") if path.suffix in (".npz", ".safetensors"))


def load_shard(path: Path) -> dict[str, Tensor]:
    """The arrays of one file.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            arrays = load_file(path)
        else:
            with path.open("rb") as opened, np.load(opened) as file:  # NumPy would not close a broken one
                arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        whole = len(arrays["embeddings"]) == len(arrays["ids"])
    except (OSError, EOFError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: delete it and predict again, which embeds its images.") from error
    if not whole:
        raise ValueError(f"{path} is damaged: it has {len(arrays['ids'])} ids, {len(arrays['embeddings'])} embeddings.")
    return arrays


def save_shard(folder: Path, rank: int, suffix: str, arrays: dict[str, Tensor], state: str) -> None:
    """Writes the next file of a process: "npz", with the state as the archive's comment, or "safetensors"."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"shard-{rank:02}-*")]
    path = folder / f"shard-{rank:02}-{max(numbers, default=-1) + 1:05}.{suffix}"

    def write(unfinished: Path) -> None:
        if suffix == "safetensors":
            save_file(arrays, unfinished, {STATE: state})
            return
        as_numpy: dict[str, Any] = {name: values.numpy() for name, values in arrays.items()}
        np.savez(unfinished, **as_numpy)
        with zipfile.ZipFile(unfinished, "a") as archive:
            archive.comment = state.encode()

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file that is there as a whole or not at all."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    os.replace(unfinished, path)
