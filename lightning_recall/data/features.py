"""Features of images, computed once by a frozen backbone, as a data set and as files."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.data.messages import shorten


class FeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Features of the images of a data set; an item is (features (F,), label).

    All other attributes are those of the data set of images: `labels`, `is_query`, `groups`, `paths`, `unreadable`, ...

    Args:
        data: the data set of images.
        features: (N, V, F): V views of each image; an item draws one of them at random.
        readable: (N,) bool: False for images that could not be read, which evaluation ignores.
    """

    def __init__(self, data: Any, features: Tensor, readable: Tensor) -> None:
        self.data = data
        self.features = features
        self.readable = readable
        self.labels = data.labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Features (F,) of one view, and the label."""
        views = self.features.shape[1]
        view = int(torch.randint(views, ())) if views > 1 else 0
        label = self.labels[index] if self.readable[index] else IGNORED_LABEL
        return self.features[index, view], torch.tensor(label)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the data set of images."""
        if name == "data" or name.startswith("__"):  # not set yet during copy
            raise AttributeError(name)
        return getattr(self.data, name)

    def select(self, indices: Any, training: bool = False) -> "FeatureDataset":
        """A subset, by mask (N,) or indices (M,)."""
        rows = torch.arange(len(self))[indices]
        return FeatureDataset(self.data.select(indices, training), self.features[rows], self.readable[rows])


def replace_unreadable(features: Tensor, readable: Tensor, labels: Any) -> None:
    """Replaces features (N, V, F) of unreadable training images by those of another image of the class, in place.

    Raises:
        ValueError: if no image of a class could be read.
    """
    labels = np.asarray(labels)
    known = readable.numpy()
    for index in np.flatnonzero(~known):
        same = np.flatnonzero((labels == labels[index]) & known)
        if not len(same):
            raise ValueError(f"Cannot read any image of class {labels[index]}: check that its folder exists.")
        features[index] = features[same[index % len(same)]]


def weights_key(embedder: nn.Module) -> str:
    """Hash of everything that the features of an embedder depend on: its modules and weights without the head."""
    head = getattr(embedder, "head", None)
    in_head = set(head.modules()) if isinstance(head, nn.Module) else set()
    digest = hashlib.blake2b(digest_size=16)
    for name, module in embedder.named_modules():
        if module in in_head:
            continue
        scaling = getattr(module, "scaling", "")  # of LoRA matrices, in peft
        digest.update(f"{name} {type(module).__name__} {module.extra_repr()} {scaling}\n".encode())
        for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def transform_key(data: Any) -> str:
    """Text that changes with the transform of a data set: its classes and their settings.

    Settings without a readable text contain memory addresses, which differ in each process: features are then computed
    again.
    """
    mode = getattr(getattr(data, "transforms", None), "mode", "")
    return f"{mode} {text_of_settings(getattr(data, 'transform', None))}"


def text_of_settings(value: Any) -> str:
    """A module or a list of modules as text, with all attributes; other values as their repr."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of_settings, value))}]"
    if not isinstance(value, nn.Module):
        return repr(value)
    settings = {name: part for name, part in vars(value).items() if not name.startswith("_") and name != "training"}
    state = {name: tensor.tolist() for name, tensor in value.state_dict().items()}
    parts = [f"{name}={text_of_settings(part)}" for name, part in {**settings, **dict(value.named_children())}.items()]
    return f"{type(value).__module__}.{type(value).__qualname__}({', '.join(parts)}, {state})"


def contents_key(data: Any) -> str:
    """Hash of the images of a data set: path, size and time of each file, or the pixels in memory.

    Raises:
        ValueError: for a data set without `paths` and `images`.
    """
    digest = hashlib.blake2b(digest_size=16)
    if getattr(data, "paths", None) is not None:
        for index in range(len(data)):
            path = data.path(index)
            state = os.stat(path) if os.path.exists(path) else None
            digest.update(f"{path} {state and (state.st_size, state.st_mtime_ns)}\n".encode(errors="surrogateescape"))
        boxes = getattr(data, "boxes", None)
        digest.update(b"" if boxes is None else np.asarray(boxes).tobytes())
    elif isinstance(getattr(data, "images", None), Tensor):
        digest.update(f"{tuple(data.images.shape)}".encode() + data.images.numpy().tobytes())
    else:
        raise ValueError(
            f"folder keeps features of image files and of ImagesInMemory: {type(data).__name__} is neither, so omit "
            "folder."
        )
    return digest.hexdigest()


def load_features(file: Path, keys: Mapping[str, str]) -> tuple[dict[str, Tensor] | None, str]:
    """Features from a file that was saved with the same keys.

    Returns:
        ({"features", "readable"} or None, why there are none: what has changed, or "" if there is no file).
    """
    if not file.exists():
        return None, ""
    try:
        with safe_open(file, framework="pt") as saved:
            metadata = saved.metadata() or {}
            changed = [name for name, key in keys.items() if metadata.get(name) != key]
            if changed:
                return None, f"{shorten(file)} was made with other {' and '.join(changed)}: embedding the images again."
            return {name: saved.get_tensor(name) for name in ("features", "readable")}, ""
    except (OSError, SafetensorError) as error:
        return None, f"{shorten(file)} cannot be read ({shorten(error, 60)}): embedding the images again."


def save_features(file: Path, features: Tensor, readable: Tensor, keys: Mapping[str, str]) -> None:
    """Writes features and their keys; an interruption leaves no partial file.

    Raises:
        ValueError: if the folder cannot be written.
    """
    unfinished = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous(), "readable": readable}, unfinished, dict(keys))
        unfinished.replace(file)
    except OSError as error:
        raise ValueError(
            f"Cannot write features to {shorten(file.parent)}: choose another folder. ({error})"
        ) from error
