"""Records which model and data produced a folder of embeddings, and reports differences."""

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
from lightning_recall.data.attributes import attribute_of, leaves
from lightning_recall.embedding_sets.shards import write_atomically

METADATA_FILE, ITEMS_FILE = "about.json", "rows-{}.npz"  # names as in folders of earlier versions
WRAPPER_HASH = "nest of Subset and ConcatDataset"  # key of the hash of a data set's wrappers; as in earlier versions
CONTENT_ATTRIBUTES = ("images", "data")  # attributes with the contents of a data set, in addition to `tensors`


class EmbeddingState(NamedTuple):
    """Everything that the embeddings depend on.

    model: {"weights": a hash, "module": its class, "precision": ..., "test-time augmentation": ...}.
    data: name of the dataloader -> {"number of items": ..., "transforms": ..., "contents": a hash, ...}.
    items: name of the dataloader -> {"paths": (N,) bytes, "labels": (N, ...)}, with the keys that are available.
    """

    model: dict[str, str]
    data: dict[str, dict[str, str]]
    items: dict[str, dict[str, NDArray[Any]]]

    @property
    def digest(self) -> str:
        """SHA-256 of the state."""
        digest = hashlib.sha256(json.dumps([self.model, self.data]).encode())
        for arrays in self.items.values():
            for name, values in arrays.items():
                digest.update(name.encode() + values.tobytes())
        return digest.hexdigest()


def state_of(trainer: Trainer, pl_module: LightningModule, loaders: Mapping[str, Any]) -> EmbeddingState:
    """The state of a module and of the data sets of named dataloaders."""
    model = {
        "weights": fingerprint(pl_module.state_dict()),
        "module": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
        "precision": str(trainer.precision),
        "test-time augmentation": one_line_repr(getattr(pl_module, "test_time_augmentation", None)),
    }
    datasets = {name: getattr(loader, "dataset", None) for name, loader in loaders.items()}
    data = {name: describe_dataset(dataset) for name, dataset in datasets.items()}
    return EmbeddingState(model, data, {name: item_arrays(dataset) for name, dataset in datasets.items()})


def describe_dataset(dataset: Any) -> dict[str, str]:
    """A short description of a data set; contents in memory are hashed."""
    parts = leaves(dataset)
    description = {"number of items": f"{len(dataset):,}" if hasattr(dataset, "__len__") else "unknown"}
    description["folder"] = ", ".join(
        os.path.abspath(part.root) for part in parts if isinstance(getattr(part, "root", 0), str)
    )
    settings = [getattr(part, name, None) for part in parts for name in ("transforms", "transform")]
    description["transforms"] = "; ".join(one_line_repr(setting) for setting in settings if setting is not None)
    description["contents"] = contents_of(parts)
    wrapper_hash = hash_of_wrappers(dataset)
    if wrapper_hash:  # unwrapped data sets have no hash, for compatibility with earlier versions
        description[WRAPPER_HASH] = wrapper_hash
    return description


def contents_of(parts: list[Any]) -> str:
    """A hash of the tensors and arrays that data sets hold in memory."""
    digest = hashlib.sha256()
    for part in parts:
        tensors = getattr(part, "tensors", ())
        contents = [*(tensors if isinstance(tensors, list | tuple) else ())]
        contents += [getattr(part, name, 0) for name in CONTENT_ATTRIBUTES]
        for values in contents:
            if isinstance(values, np.ndarray) and not isinstance(values, np.memmap) and not values.dtype.hasobject:
                digest.update(f"{values.shape} {values.dtype}".encode() + values.tobytes())
            elif isinstance(values, Tensor):
                digest.update(bytes_of(values))
    return digest.hexdigest()


def hash_of_wrappers(dataset: Any) -> str:
    """Hash of the indices of each `Subset` and the sizes in each `ConcatDataset`; "" if the data set is not wrapped."""
    if isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices, dtype=np.int64)
        return hashlib.sha256(b"Subset" + indices.tobytes() + hash_of_wrappers(dataset.dataset).encode()).hexdigest()
    if isinstance(dataset, ConcatDataset):
        parts = [(dataset.cumulative_sizes, *map(hash_of_wrappers, dataset.datasets))]
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    return ""


def item_arrays(dataset: Any) -> dict[str, NDArray[Any]]:
    """Paths and labels of the items of a data set, those that are available."""
    arrays = {"paths": paths_of(dataset), "labels": first_available_attribute(dataset, ("labels", "targets"))}
    return {name: values for name, values in arrays.items() if values is not None}


def paths_of(dataset: Any) -> NDArray[Any] | None:
    """Paths (N,), as bytes, from `paths`, or from torchvision's `samples` or `imgs`, pairs (path, class)."""
    for name in ("paths", "samples", "imgs"):
        with suppress(TypeError, ValueError, IndexError):  # the attribute exists but does not hold paths
            values = attribute_of(dataset, name)
            paths = [entry if name == "paths" else entry[0] for entry in values]
            encoded = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
            if encoded.shape == (len(dataset),):
                return encoded
    return None


def first_available_attribute(dataset: Any, names: tuple[str, ...]) -> NDArray[Any] | None:
    """The first of the named attributes (N, ...) that has one entry for each item; None if there is none."""
    for name in names:
        with suppress(TypeError, ValueError):
            values = np.asarray(attribute_of(dataset, name))
            if values.shape[:1] == (len(dataset),) and not values.dtype.hasobject:
                return values
    return None


def save_state(root: Path, state: EmbeddingState) -> None:
    """Writes a state to a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number, items in enumerate(state.items.values()):
        arrays: dict[str, Any] = items
        write_atomically(root / ITEMS_FILE.format(number), partial(np.savez_compressed, **arrays))
    text = json.dumps({"model": state.model, "data": state.data}, indent=1)
    write_atomically(root / METADATA_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def load_state(root: Path) -> EmbeddingState | None:
    """The state saved in a folder; None if no state was saved (folders of earlier versions)."""
    try:
        metadata = json.loads((root / METADATA_FILE).read_text(encoding="utf-8"))
        items = {}
        for number, name in enumerate(metadata["data"]):
            with (root / ITEMS_FILE.format(number)).open("rb") as raw, np.load(raw) as file:
                items[name] = {attribute: file[attribute] for attribute in file.files}
        return EmbeddingState(metadata["model"], metadata["data"], items)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def differences(saved: EmbeddingState, current: EmbeddingState) -> list[str]:
    """The differences between two states, each in words."""
    found = changed_settings(saved.model, current.model, "")
    if list(saved.data) != list(current.data):
        return [*found, f"it was made with the dataloaders {list(saved.data)}, now they are {list(current.data)}"]
    for name in current.data:
        suffix = f" of dataloader {name}" if name else ""
        found += changed_settings(saved.data[name], current.data[name], suffix)
        for key, noun in (("paths", "path"), ("labels", "label")):
            found += first_difference(saved.items[name].get(key), current.items[name].get(key), noun, suffix)
    return found


def first_difference(saved: Any, current: Any, noun: str, suffix: str) -> list[str]:
    """The first item in which two arrays differ, in words; an empty list if they are equal."""
    if saved is None and current is None:
        return []
    if saved is None:
        return [f"{noun}s{suffix} were not saved before but are now available"]
    if current is None:
        return [f"{noun}s{suffix} were saved before but are now unavailable"]
    common_length = min(len(saved), len(current))
    indices = np.flatnonzero(saved[:common_length] != current[:common_length])
    if len(indices) == 0:
        return []
    values = [array[indices[0]] for array in (saved, current)]
    old, new = (os.fsdecode(value) if noun == "path" else str(value) for value in values)
    return [change_of(f"{noun} of item {indices[0]}{suffix}", old, new)]


def changed_settings(saved: Mapping[str, str], current: Mapping[str, str], suffix: str) -> list[str]:
    """Describes the changed settings, without printing hashes."""
    names = [name for name in {**saved, **current} if saved.get(name, "") != current.get(name, "")]
    hashed_setting_names = {"weights": "weights", "contents": "contents", WRAPPER_HASH: "Subset or ConcatDataset"}
    return [
        f"changed {hashed_setting_names[name]}{suffix}"
        if name in hashed_setting_names
        else change_of(name + suffix, saved.get(name), current.get(name))
        for name in names
    ]


def change_of(name: str, saved: str | None, current: str | None) -> str:
    """Describes one changed setting."""
    return f"{name} was {saved or 'none'} and is {current or 'none'}"


def one_line_repr(value: Any) -> str:
    """A one-line repr without memory addresses; "" for None."""
    return re.sub(r"\s+", " ", re.sub(r" at 0x[0-9a-f]+", "", repr(value))) if value is not None else ""


def fingerprint(state_dict: Mapping[str, Any]) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        digest.update(name.encode())
        digest.update(bytes_of(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """The shape and dtype of a tensor, followed by the bytes of its values."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return f"{tuple(tensor.shape)} {tensor.dtype}".encode() + values.numpy().tobytes()
