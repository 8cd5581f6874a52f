"""Embeddings in files, memory-mapped, for sets that do not fit in memory."""

import csv
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from lightning_recall.embedding_sets.items import ROLES
from lightning_recall.embedding_sets.shards import READ_ERRORS, check_same_origin, found_shards, signature_of

ROWS = 100_000  # rows of items.csv that are read at a time

HEADERS: dict[Any, Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""version of a .npy file -> function that reads its header"""

Piece = Tensor | NDArray[np.floating[Any]]
"""embeddings (n, D), memory-mapped"""


class MappedEmbeddings(NamedTuple):
    """Memory-mapped embeddings of N items, in the order of the files, and what is known of them.

    Only the parts of `pieces` that are read come into memory, and the system may drop them again. The other fields lie
    in memory: 8 or 1 bytes an item each.

    path: folder or file that was mapped.
    pieces: embeddings (n, D), together N.
    ids: (N,) int64, distinct: indices of the data set.
    labels: (N,) int64; None if unknown.
    is_query: (N,) bool: which items are queries; None: all.
    is_gallery: (N,) bool: which items are in the gallery; None: all.
    groups: (N,) int64, such as cameras: a query ignores items of its class and group; None: nothing is ignored.
    """

    path: Path
    pieces: list[Piece]
    ids: Tensor
    labels: Tensor | None = None
    is_query: Tensor | None = None
    is_gallery: Tensor | None = None
    groups: Tensor | None = None


def map_embedding_set(path: str | Path) -> MappedEmbeddings:
    """Maps what `EmbeddingWriter` has written, or one file of embeddings, without reading the embeddings.

    An id that several shards hold, such as an image that pads the last batch of a process, counts once.

    Args:
        path: a folder with shards, as `lightning-recall predict` writes it, or one .npz or .safetensors file with the
            arrays embeddings (N, D) and, optionally, ids (N,) and labels (N,). "~" is expanded.

    Raises:
        ValueError: if there are no embeddings, a file is damaged or compressed, shards come from different models, or
            `items.csv` does not belong to them.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "embeddings.npz")
    >>> np.savez(file, embeddings=np.eye(3, dtype=np.float32), labels=np.array([4, 4, 5]))
    >>> mapped = map_embedding_set(file)
    >>> type(mapped.pieces[0]).__name__, mapped.labels
    ('memmap', tensor([4, 4, 5]))
    """
    path = Path(path).expanduser()
    paths = [path] if path.is_file() else found_shards(path)
    shards = [_map_shard(file) for file in paths]
    check_same_origin(path, paths, [signature_of(*pair) for pair in zip(paths, shards, strict=True)])
    starts = np.cumsum([0, *(len(shard["embeddings"]) for shard in shards)])
    default_ids = (torch.arange(start, start + len(s["embeddings"])) for start, s in zip(starts, shards, strict=False))
    ids = torch.cat([shard.get("ids", default) for shard, default in zip(shards, default_ids, strict=True)]).long()
    labels = torch.cat([shard["labels"] for shard in shards]).long() if "labels" in shards[0] else None
    is_first = _is_first(ids)  # (N,)
    pieces = _selected([shard["embeddings"] for shard in shards], is_first)
    ids = ids[is_first]
    roles = _read_roles(path / "items.csv", ids) if (path / "items.csv").is_file() else {}
    return MappedEmbeddings(path, pieces, ids, None if labels is None else labels[is_first], **roles)


def _map_shard(path: Path) -> dict[str, Any]:
    """The arrays of a file: embeddings memory-mapped, ids and labels in memory.

    Raises:
        ValueError: if the file is damaged, compressed, or no file of embeddings.
    """
    try:
        if path.suffix == ".safetensors":
            shard = _map_safetensors(path)
        else:
            member = _embeddings_member(path)
            shard = _map_npz(path, member.header_offset) if member.compress_type == zipfile.ZIP_STORED else {}
        embeddings = shard["embeddings"] if shard else None
    except READ_ERRORS as error:
        raise ValueError(
            f"{path} is damaged, or not a .npz or .safetensors file with `embeddings`: delete it and run predict "
            f"again. ({type(error).__name__}: {error})"
        ) from error
    if embeddings is None:
        raise ValueError(f"{path} is compressed, so it cannot be memory-mapped: save it with np.savez or safetensors.")
    for name in ("ids", "labels"):
        if name in shard and shard[name].shape != (len(embeddings),):
            raise ValueError(
                f"{path} is damaged: it has embeddings {tuple(embeddings.shape)} and {name} {tuple(shard[name].shape)}."
            )
    return shard


def _map_safetensors(path: Path) -> dict[str, Any]:
    """The arrays of a .safetensors file; its tensors are views of the mapped file."""
    with safe_open(path, framework="pt") as file:
        names = {"embeddings", "ids", "labels"} & set(file.keys())
        return {
            name: file.get_tensor(name) if name == "embeddings" else file.get_tensor(name).clone() for name in names
        }


def _embeddings_member(path: Path) -> zipfile.ZipInfo:
    """Where a .npz file, which is a zip file, holds the embeddings."""
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo("embeddings.npy")


def _map_npz(path: Path, header_offset: int) -> dict[str, Any]:
    """The arrays of a .npz file; `header_offset` is the position of the embeddings' header in the zip file."""
    with path.open("rb") as raw:
        with np.load(raw) as file:  # np.load(path) leaks the file handle if it raises
            names = [name for name in ("ids", "labels") if name in file.files]
            arrays: dict[str, Any] = {name: torch.from_numpy(file[name]) for name in names}
        raw.seek(header_offset + 26)  # lengths of the file name and of the extra field, which follow
        raw.seek(sum(np.frombuffer(raw.read(4), "<u2").tolist()), 1)
        read_header = HEADERS[np.lib.format.read_magic(raw)]
        shape, is_fortran, dtype = read_header(raw)
        arrays["embeddings"] = np.memmap(path, dtype, "r", raw.tell(), shape, "F" if is_fortran else "C")
    return arrays


def _is_first(ids: Tensor) -> Tensor:
    """(N,) bool: whether no earlier item has the id."""
    order = ids.argsort(stable=True)
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[order[1:]] = ids[order].diff() != 0
    return is_first


def _selected(pieces: list[Piece], is_kept: Tensor) -> list[Piece]:
    """The pieces without some items: slices, which stay memory-mapped."""
    parts = []
    for piece, mask in zip(pieces, torch.split(is_kept, [len(piece) for piece in pieces]), strict=True):
        bounds = np.flatnonzero(np.diff(mask.numpy(), prepend=False, append=False)).tolist()
        parts += [piece[start:stop] for start, stop in zip(bounds[::2], bounds[1::2], strict=True)]
    return parts


def _read_roles(file: Path, ids: Tensor) -> dict[str, Tensor]:
    """Roles of the items from `items.csv`, which is read in parts: is_query, is_gallery and groups, those it has.

    Raises:
        ValueError: if the file is damaged, or lacks an id.
    """
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            reader = csv.DictReader(opened)
            names = [name for name in ROLES if name in (reader.fieldnames or ())]
            return _fill_roles(reader, names, ids) if names else {}
    except KeyError as error:
        raise ValueError(f"{file} does not belong to the embeddings beside it: it has no row for {error}.") from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{file} is damaged: run predict again, or delete it. ({error})") from error


def _fill_roles(reader: Iterator[dict[str, str]], names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Columns (N,) of the given names, for ids (N,); raises KeyError for an id without a row."""
    ordered, order = ids.sort()
    columns = torch.zeros(len(names), len(ids), dtype=torch.int64)
    is_known = torch.zeros(len(ids), dtype=torch.bool)
    while rows := list(islice(reader, ROWS)):
        read = torch.tensor([[int(row[name]) for row in rows] for name in ("id", *names)])
        position = torch.searchsorted(ordered, read[0]).clamp(max=len(ids) - 1)
        is_ours = ordered[position] == read[0]
        items = order[position[is_ours]]
        is_known[items] = True
        columns[:, items] = read[1:, is_ours]
    if not is_known.all():
        raise KeyError(int(ids[~is_known][0]))
    return {ROLES[name][0]: column.to(ROLES[name][1]) for name, column in zip(names, columns, strict=True)}
