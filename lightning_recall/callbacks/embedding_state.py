"""The state of model and data that a folder of embeddings was made in, and how another one differs."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.callbacks.embedding_files import write_whole
from lightning_recall.data.attributes import attribute_of, leaves

ABOUT, ROWS = "about.json", "rows-{}.npz"
NEST = "nest of Subset and ConcatDataset"
HELD = ("images", "data")  # attributes of a data set that hold its contents, beside the `tensors` of a TensorDataset


class EmbeddingState(NamedTuple):
    """What embeddings depend on.

    model: {"weights": a hash, "module": its class, "precision": ..., "test-time augmentation": ...}.
    data: of each dataloader by name, {"number of items": ..., "transforms": ..., "contents": a hash, ...}.
    rows: of each dataloader by name, {"paths": (N,) bytes, "labels": (N,) int64}, as far as they are known.
    """

    model: dict[str, str]
    data: dict[str, dict[str, str]]
    rows: dict[str, dict[str, NDArray[Any]]]

    @property
    def digest(self) -> str:
        """A hash, different for different states."""
        digest = hashlib.sha256(json.dumps([self.model, self.data]).encode())
        for arrays in self.rows.values():
            for name, values in arrays.items():
                digest.update(name.encode() + values.tobytes())
        return digest.hexdigest()


def state_of(trainer: Trainer, pl_module: LightningModule, loaders: Mapping[str, Any]) -> EmbeddingState:
    """The state of a module and of the data sets of some dataloaders by name."""
    model = {
        "weights": fingerprint(pl_module),
        "module": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
        "precision": str(trainer.precision),
        "test-time augmentation": text_of(getattr(pl_module, "test_time_augmentation", None)),
    }
    datasets = {name: getattr(loader, "dataset", None) for name, loader in loaders.items()}
    data = {name: about_data(dataset) for name, dataset in datasets.items()}
    return EmbeddingState(model, data, {name: about_rows(dataset) for name, dataset in datasets.items()})


def about_data(dataset: Any) -> dict[str, str]:
    """What can be said of a data set in a few words: contents only of those that hold tensors."""
    parts = leaves(dataset)
    about = {"number of items": f"{len(dataset):,}" if hasattr(dataset, "__len__") else "unknown"}
    about["folder"] = ", ".join(
        os.path.abspath(part.root) for part in parts if isinstance(getattr(part, "root", 0), str)
    )
    settings = [getattr(part, name, None) for part in parts for name in ("transforms", "transform")]
    about["transforms"] = "; ".join(text_of(setting) for setting in settings if setting is not None)
    about["contents"] = contents_of(parts)
    nest = nest_of(dataset)
    return {**about, NEST: nest} if nest else about  # without one, as in folders of earlier versions


def contents_of(parts: list[Any]) -> str:
    """A hash of the tensors and arrays that some data sets hold in memory."""
    digest = hashlib.sha256()
    for part in parts:
        tensors = getattr(part, "tensors", ())
        held = (*(tensors if isinstance(tensors, list | tuple) else ()), *(getattr(part, name, 0) for name in HELD))
        for values in held:
            if isinstance(values, np.ndarray) and not isinstance(values, np.memmap) and not values.dtype.hasobject:
                digest.update(f"{values.shape} {values.dtype}".encode() + values.tobytes())
            elif isinstance(values, Tensor):
                digest.update(bytes_of(values))
    return digest.hexdigest()


def nest_of(dataset: Any) -> str:
    """A hash of the rows that each `Subset` takes and of the sizes of the parts of each `ConcatDataset`; "" without."""
    if isinstance(dataset, Subset):
        rows = np.asarray(dataset.indices, dtype=np.int64)
        return hashlib.sha256(b"Subset" + rows.tobytes() + nest_of(dataset.dataset).encode()).hexdigest()
    if isinstance(dataset, ConcatDataset):
        parts = [(dataset.cumulative_sizes, *map(nest_of, dataset.datasets))]
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    return ""


def about_rows(dataset: Any) -> dict[str, NDArray[Any]]:
    """Paths and labels of a data set's rows, as far as it has them."""
    found = {"paths": paths_of(dataset), "labels": first_of(dataset, ("labels", "targets"))}
    return {name: values for name, values in found.items() if values is not None}


def paths_of(dataset: Any) -> NDArray[Any] | None:
    """Paths (N,), as bytes, from `paths`, or from torchvision's `samples` or `imgs`, pairs (path, class)."""
    for name in ("paths", "samples", "imgs"):
        with suppress(TypeError, ValueError, IndexError):  # attributes of these names that hold something else
            values = attribute_of(dataset, name)
            paths = [entry if name == "paths" else entry[0] for entry in values]
            found = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
            if found.shape == (len(dataset),):
                return found
    return None


def first_of(dataset: Any, names: tuple[str, ...]) -> NDArray[Any] | None:
    """The first of some attributes (N, ...) that a data set has for all its rows."""
    for name in names:
        with suppress(TypeError, ValueError):
            values = np.asarray(attribute_of(dataset, name))
            if values.shape[:1] == (len(dataset),) and not values.dtype.hasobject:
                return values
    return None


def save_state(root: Path, state: EmbeddingState) -> None:
    """Writes a state to a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(state.rows.values()):
        arrays: dict[str, Any] = rows
        write_whole(root / ROWS.format(number), partial(np.savez_compressed, **arrays))
    text = json.dumps({"model": state.model, "data": state.data}, indent=1)
    write_whole(root / ABOUT, lambda path: path.write_text(text, encoding="utf-8"))


def load_state(root: Path) -> EmbeddingState | None:
    """The state that a folder was made in; None if it does not say so, as folders of earlier versions."""
    try:
        about = json.loads((root / ABOUT).read_text(encoding="utf-8"))
        rows = {}
        for number, name in enumerate(about["data"]):
            with (root / ROWS.format(number)).open("rb") as opened, np.load(opened) as file:
                rows[name] = {kind: file[kind] for kind in file.files}
        return EmbeddingState(about["model"], about["data"], rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def differences(was: EmbeddingState, now: EmbeddingState) -> list[str]:
    """How two states differ, in words."""
    found = changes(was.model, now.model, "")
    if list(was.data) != list(now.data):
        return [*found, f"it has the dataloaders {list(was.data)}, not {list(now.data)}"]
    for part in now.data:
        place = f" of dataloader {part}" if part else ""
        found += changes(was.data[part], now.data[part], place)
        for kind, what in (("paths", "file"), ("labels", "label")):
            found += first_difference(was.rows[part].get(kind), now.rows[part].get(kind), what, place)
    return found


def first_difference(was: Any, now: Any, what: str, place: str) -> list[str]:
    """The first row in which two arrays differ, in words; none if they are equal."""
    if was is None or now is None:
        return [] if was is now else [f"{what}s{place} that are {'not ' * (now is None)}known"]
    shared = min(len(was), len(now))
    rows = np.flatnonzero(was[:shared] != now[:shared])
    if len(rows) == 0:
        return []
    old, new = (os.fsdecode(x[rows[0]]) if what == "file" else str(x[rows[0]]) for x in (was, now))
    return [changed(f"{what} of row {rows[0]}{place}", old, new)]


def changes(was: Mapping[str, str], now: Mapping[str, str], place: str) -> list[str]:
    """The settings that were others, in words; weights and contents are hashes, which nobody wants to read."""
    names = [name for name in {**was, **now} if was.get(name, "") != now.get(name, "")]
    hashes = ("weights", "contents", NEST)
    return [
        f"other {name}{place}" if name in hashes else changed(name + place, was.get(name), now.get(name))
        for name in names
    ]


def changed(name: str, was: str | None, now: str | None) -> str:
    """That a setting was another."""
    return f"{name} was {was or 'none'} and is {now or 'none'}"


def text_of(value: Any) -> str:
    """A value's repr on one line, without addresses in memory, which differ from run to run."""
    return re.sub(r"\s+", " ", re.sub(r" at 0x[0-9a-f]+", "", repr(value))) if value is not None else ""


def fingerprint(module: LightningModule) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(bytes_of(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, after its shape and type."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return f"{tuple(tensor.shape)} {tensor.dtype}".encode() + values.numpy().tobytes()
