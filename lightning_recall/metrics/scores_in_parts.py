"""Retrieval scores of embeddings that do not fit in memory: one part of the queries after the other."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_recall.checks import check_finite, check_integer
from lightning_recall.metrics.scores import FIRST_RANK_SCORES, checked_scores, score, score_names
from lightning_recall.search.embedding_blocks import BLOCK_SIZE, EmbeddingBlocks, EmbeddingsLike
from lightning_recall.search.inputs import check_bools, check_integers
from lightning_recall.search.relevant_ranks import LabelledEmbeddings, rank_by_label

SAMPLE = 1000  # embeddings, evenly spaced, by which a folder of results recognises its embeddings
SETTINGS_FILE = "settings.json"


def score_in_parts(
    embeddings: EmbeddingsLike,
    labels: Tensor,
    is_query: Tensor | None = None,
    is_gallery: Tensor | None = None,
    groups: Tensor | None = None,
    scores: str | Sequence[str] = ("recall", "map@r", "r_precision", "mrr"),
    ks: int | Sequence[int] = (1, 2, 4, 8),
    part_size: int = 4096,
    results: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The scores of `RetrievalScores` for embeddings on disk, with the memory of one part of the queries.

    Every part of the queries searches the whole gallery, which is read block by block. With torch.distributed, each
    process searches every `world_size`-th part. All processes get the scores. They need the same files, and no memory
    for the embeddings. Scores are averaged over the queries that have a same-class item in the gallery.

    `RetrievalScores` is up to twice as fast if all items are queries and the embeddings fit in memory, because it
    computes each similarity once for both items. Here each part stands alone, so that it can be saved.

    Args:
        embeddings: (N, D), one or more tensors or arrays, usually memory-mapped: `map_embedding_set(folder).pieces`.
            Similarities are cosines.
        labels: (N,) integers.
        is_query: (N,) bool, which items are queries; None: all.
        is_gallery: (N,) bool, which items are in the gallery; None: all.
        groups: (N,) integers; a query ignores items of the same class and group. None: nothing is ignored.
        scores: names of scores, as in `RetrievalScores`.
        ks: cut-offs of recall, fraction_retrieved and precision, at least 1.
        part_size: queries in a part. The gallery is read once a part.
        results: folder for the scores of each part, one file a part: the queries (q,), as positions in `embeddings`,
            and their scores. A call with the same arguments, and any number of processes, continues after the parts
            that the folder holds. None: nothing is saved.
        device: device of the search.

    Returns:
        {"recall@1": value in [0, 1], ...}.

    Raises:
        ValueError: if shapes or dtypes do not match, embeddings are not finite, there is no query with a same-class
            item in the gallery, or `results` holds results of other arguments or a damaged file.

    >>> embeddings = [torch.tensor([[1.0, 0.0], [0.9, 0.1]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])]
    >>> score_in_parts(embeddings, torch.tensor([5, 6, 6, 5]), scores=("recall", "mrr"), ks=(1, 2))
    {'recall@1': 0.0, 'recall@2': 0.5, 'mrr': 0.41666...}
    """
    names, cutoffs = checked_scores(scores, ks)
    check_integer("part_size", part_size, 1)
    blocks = EmbeddingBlocks(embeddings, device=device)
    check_integers(len(blocks), labels=labels, groups=groups)
    check_bools(len(blocks), is_query=is_query, is_gallery=is_gallery)
    _check_finite(blocks)
    queries = torch.arange(len(blocks)) if is_query is None else is_query.cpu().nonzero().squeeze(1)
    if len(queries) == 0:
        raise ValueError(f"None of the {len(blocks):,} items is a query: there is nothing to score.")
    items = LabelledEmbeddings(
        blocks,
        labels.to(device, torch.int64),
        torch.arange(len(blocks), device=device),
        None if groups is None else groups.to(device),
    )
    gallery = items if is_gallery is None or bool(is_gallery.all()) else _select(items, is_gallery.nonzero().squeeze(1))
    parts = torch.split(_by_label(queries, labels), part_size)
    folder = None
    if results is not None:
        columns = (labels, is_query, is_gallery, groups)
        folder = _results_folder(Path(results).expanduser(), blocks, columns, [names, cutoffs, part_size])
    return _mean_over_parts(items, gallery, parts, names, cutoffs, folder)


def drawn_queries(size: int, is_query: Tensor | None, count: int | None, seed: int = 0) -> Tensor | None:
    """Draws `count` of the queries at random, without replacement.

    Args:
        size: number of items, N.
        is_query: (N,) bool, which items are queries; None: all.
        count: number of queries to draw; None, or at least the number of queries: all.
        seed: seed of the draw.

    Returns:
        (N,) bool, or None for all items.

    Raises:
        ValueError: for a count below 1.

    >>> int(drawn_queries(10, None, 3).sum())
    3
    """
    if count is None:
        return is_query
    check_integer("queries", count, 1)
    queries = torch.arange(size) if is_query is None else is_query.nonzero().squeeze(1)
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))
    is_drawn = torch.zeros(size, dtype=torch.bool)
    is_drawn[queries[order[:count]]] = True
    return is_drawn


def _mean_over_parts(
    items: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    parts: Sequence[Tensor],
    names: tuple[str, ...],
    cutoffs: tuple[int, ...],
    folder: Path | None,
) -> dict[str, float]:
    """The means of the scores over the queries of all parts; each process searches some of the parts."""
    rank, world_size = _rank_and_world_size()
    columns = score_names(names, cutoffs)
    totals = torch.zeros(len(columns) + 1, dtype=torch.float64, device=items.labels.device)  # the last counts queries
    local_parts = range(rank, len(parts), world_size)
    with tqdm(
        total=sum(len(parts[n]) for n in local_parts), desc="Searching", unit=" queries", disable=rank > 0
    ) as bar:
        for number in local_parts:
            file = None if folder is None else folder / f"part-{number:06}.npz"
            if file is not None and file.exists():
                values = _load_part(file, columns)  # (q, S)
            else:
                queries, values = _score_part(items, gallery, parts[number].to(items.labels.device), names, cutoffs)
                if file is not None:
                    _save_part(file, queries, values, columns)
            totals[:-1] += values.sum(0)
            totals[-1] += len(values)
            bar.update(len(parts[number]))
    if world_size > 1:
        torch.distributed.all_reduce(totals)
    if totals[-1] == 0:
        raise ValueError(
            f"None of the {sum(map(len, parts)):,} queries has a same-class item in the gallery of "
            f"{len(gallery.labels):,} items: evaluate classes with at least 2 images."
        )
    return dict(zip(columns, (totals[:-1] / totals[-1]).tolist(), strict=True))


def _score_part(
    items: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    queries: Tensor,
    names: tuple[str, ...],
    cutoffs: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """The queries (q,) of a part that have a relevant item, and their scores (q, S)."""
    only_first = set(names) <= FIRST_RANK_SCORES
    found: list[tuple[Tensor, Tensor]] = []
    for ranks in rank_by_label(_select(items, queries), gallery, only_first=only_first):
        values = torch.stack([*score(ranks, names, cutoffs).values()], dim=1)
        found.append((queries[ranks.queries], values))
    indices, values = (torch.cat(columns) for columns in zip(*found, strict=True))
    return indices, values


def _select(items: LabelledEmbeddings, indices: Tensor) -> LabelledEmbeddings:
    """The items at indices (n,), whose embeddings are copied when they are read."""
    return items.reordered(indices.to(items.labels.device))


def _by_label(queries: Tensor, labels: Tensor) -> Tensor:
    """The queries (Q,), sorted by label and position, so that a part has few classes."""
    order: Tensor = queries[labels.cpu()[queries].argsort(stable=True)]
    return order


def _check_finite(blocks: EmbeddingBlocks) -> None:
    """Raises ValueError on every process if an embedding is not finite; each process reads its share."""
    rank, world_size = _rank_and_world_size()
    error = ""
    for start in range(rank * BLOCK_SIZE, len(blocks), world_size * BLOCK_SIZE):
        try:
            check_finite(blocks.block(start, min(start + BLOCK_SIZE, len(blocks))))
        except ValueError as found:
            error = str(found)
            break
    is_wrong = torch.tensor(int(bool(error)), device=blocks.device)
    if world_size > 1:
        torch.distributed.all_reduce(is_wrong)
    if is_wrong:
        raise ValueError(error or "embeddings contain NaN or infinity: another process has found them.")


def _results_folder(
    folder: Path, blocks: EmbeddingBlocks, columns: Sequence[Tensor | None], settings: list[object]
) -> Path:
    """Creates a folder of results, or checks that it belongs to these embeddings and settings.

    Raises:
        ValueError: if it holds results of others.
    """
    digest = hashlib.sha256()
    for values in (blocks.select(_evenly_spaced(len(blocks), blocks.device)), *columns):
        digest.update(b"None" if values is None else values.cpu().numpy().tobytes())
    text = json.dumps({"size": [len(blocks), blocks.dim], "settings": settings, "hash": digest.hexdigest()})
    file = folder / SETTINGS_FILE
    if folder.is_dir() and any(folder.glob("part-*.npz")) and (not file.exists() or file.read_text() != text):
        raise ValueError(
            f"{folder} holds results of other embeddings, queries, scores or settings: pass another folder, or delete "
            "this one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished-{_rank_and_world_size()[0]}-{SETTINGS_FILE}"
    unfinished.write_text(text)
    os.replace(unfinished, file)  # processes write the same text
    return folder


def _evenly_spaced(count: int, device: torch.device) -> Tensor:
    """At most `SAMPLE` of the indices from 0 to count - 1."""
    return torch.arange(min(count, SAMPLE), device=device) * count // max(min(count, SAMPLE), 1)


def _save_part(file: Path, queries: Tensor, values: Tensor, columns: Sequence[str]) -> None:
    """Writes the scores (q, S) of queries (q,)."""
    unfinished = file.with_name(f"unfinished-{file.name}")
    arrays: dict[str, Any] = {
        name: column.cpu().numpy() for name, column in zip(columns, values.unbind(1), strict=True)
    }
    np.savez(unfinished, queries=queries.cpu().numpy(), **arrays)
    os.replace(unfinished, file)


def _load_part(file: Path, columns: Sequence[str]) -> Tensor:
    """The scores (q, S) of a part.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with file.open("rb") as raw, np.load(raw) as arrays:
            return torch.stack([torch.from_numpy(arrays[name]) for name in columns], dim=1)
    except Exception as error:  # np.load raises almost anything for a damaged file
        raise ValueError(f"{file} is damaged: delete it to search these queries again. ({error})") from error


def _rank_and_world_size() -> tuple[int, int]:
    """Rank of this process, and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
