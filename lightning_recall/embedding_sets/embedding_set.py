"""Reads a folder or file of embeddings with what is known of each item and of the model."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall.checks import check_finite
from lightning_recall.embedding_sets.items import read_items
from lightning_recall.embedding_sets.shards import READ_ERRORS, load_embeddings, read_arrays

MODEL_FOLDER = "model"
"""folder of the model inside a folder of embeddings"""


class EmbeddingSet(NamedTuple):
    """Embeddings of N items, sorted by id, and what is known of them.

    path: folder or file that was read.
    embeddings: (N, D), floating point.
    ids: (N,) int64, distinct: indices of the data set.
    labels: (N,) int64; None if unknown.
    paths: path of each item; None if unknown.
    classes: class name of each item; None if unknown.
    is_query: (N,) bool: which items are queries; None: all.
    is_gallery: (N,) bool: which items are in the gallery; None: all.
    groups: (N,) int64, such as cameras: a query ignores items of its class and group; None: nothing is ignored.
    model: what is known of the model: "weights", a hash, "module", its class, ...; empty if nothing is known.
    model_folder: folder of the saved model; None if it was not saved.
    image_folder: folder to which `paths` are relative; None if unknown.
    """

    path: Path
    embeddings: Tensor
    ids: Tensor
    labels: Tensor | None = None
    paths: list[str] | None = None
    classes: list[str] | None = None
    is_query: Tensor | None = None
    is_gallery: Tensor | None = None
    groups: Tensor | None = None
    model: dict[str, str] = {}  # noqa: RUF012  # a NamedTuple's default; never changed
    model_folder: Path | None = None
    image_folder: Path | None = None


def read_embedding_set(path: str | Path) -> EmbeddingSet:
    """Reads what `EmbeddingWriter` has written, or one file of embeddings.

    Args:
        path: a folder with shards, as `lightning-recall predict` writes it, or one .npz or .safetensors file with the
            arrays embeddings (N, D) and, optionally, ids (N,) and labels (N,). "~" is expanded.

    Raises:
        ValueError: if there are no embeddings, a file is damaged, embeddings are not finite, or `items.csv` does not
            belong to them.

    >>> import tempfile, numpy as np
    >>> file = Path(tempfile.mkdtemp(), "embeddings.npz")
    >>> np.savez(file, embeddings=np.eye(3, dtype=np.float32), labels=np.array([4, 4, 5]))
    >>> read_embedding_set(file).labels
    tensor([4, 4, 5])
    """
    path = Path(path).expanduser()
    arrays = _read_file(path) if path.is_file() else load_embeddings(path)
    _check_arrays(path, arrays)
    arrays = _sorted_by_id(path, arrays)
    known = EmbeddingSet(path, arrays["embeddings"], arrays["ids"].long(), _integers(arrays.get("labels")))
    if path.is_file():
        return known
    columns = read_items(path / "items.csv", known.ids) if (path / "items.csv").exists() else {}
    model_folder = next((folder for folder in _with_parent(path, MODEL_FOLDER) if folder.is_dir()), None)
    return known._replace(**columns, **_known_of_run(path), model_folder=model_folder)


def _read_file(path: Path) -> dict[str, Tensor]:
    """The arrays of one file; ids are 0, ..., N - 1 if it has none.

    Raises:
        ValueError: for another kind of file, a damaged one, and one without embeddings.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path} must be a folder of embeddings, or a .npz or .safetensors file with `embeddings`.")
    try:
        arrays = read_arrays(path)
    except READ_ERRORS as error:
        raise ValueError(f"{path} cannot be read: it is damaged, or not a {path.suffix} file. ({error})") from error
    if "embeddings" not in arrays:
        raise ValueError(f"{path} has no array `embeddings`; it has {', '.join(arrays) or 'no arrays'}.")
    arrays.setdefault("ids", torch.arange(len(arrays["embeddings"])))
    return {name: values for name, values in arrays.items() if name in ("embeddings", "ids", "labels")}


def _sorted_by_id(path: Path, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Arrays (N, ...), sorted by id.

    Raises:
        ValueError: for repeated ids.
    """
    order = arrays["ids"].argsort(stable=True)
    if bool((arrays["ids"][order].diff() == 0).any()):
        raise ValueError(f"{path}: ids must be distinct.")
    return {name: values[order] for name, values in arrays.items()}


def _check_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    """Raises ValueError unless embeddings (N, D) are finite floats, with N ids and labels, and N is at least 1."""
    embeddings = arrays["embeddings"]
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or len(embeddings) == 0:
        raise ValueError(
            f"{path}: embeddings must be floating point, of shape (N, D) with N of at least 1, got {embeddings.dtype} "
            f"{tuple(embeddings.shape)}."
        )
    for name, values in arrays.items():
        if len(values) != len(embeddings):
            raise ValueError(f"{path} is damaged: it has {len(embeddings)} embeddings, but {len(values)} {name}.")
    try:
        check_finite(embeddings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _integers(labels: Tensor | None) -> Tensor | None:
    """Labels (N,) as int64; None for labels of another shape, which are no classes."""
    return labels.long() if labels is not None and labels.ndim == 1 else None


def _with_parent(path: Path, name: str) -> tuple[Path, Path]:
    """A file of a folder of embeddings: beside its shards, or one level above, with several dataloaders."""
    return path / name, path.parent / name


def _known_of_run(path: Path) -> dict[str, Any]:
    """`model` and `image_folder` from about.json; empty if there is no such file or another program wrote it."""
    file = next((file for file in _with_parent(path, "about.json") if file.is_file()), None)
    if file is None:
        return {}
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        model = {str(name): str(value) for name, value in about["model"].items()}
        data = about["data"]
        settings = next(iter(data.values())) if len(data) == 1 else data.get(path.name, {})
        folder = settings.get("folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {"model": model, "image_folder": Path(folder) if folder else None}
