"""The most similar gallery item of each query, also of queries without a relevant item."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.count_ahead import ALONE, Processes
from lightning_recall.search.pair_similarities import PairSimilarities
from lightning_recall.search.ranks import FLOAT64_ROWS
from lightning_recall.search.relevant_ranks import LabelledEmbeddings


class BestMatches(NamedTuple):
    """Similarities of each query, in float64 and rounded to float32; minus infinity where there is no such item.

    same_label: (Q,) of the most similar item of the query's class that is not ignored.
    other_label: (Q,) of the most similar item of another class.
    """

    same_label: Tensor
    other_label: Tensor


def best_matches(
    queries: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    processes: Processes = ALONE,
    progress: bool = False,
) -> BestMatches:
    """The similarity of each query to its best match of its class, and of other classes; exact, in blocks.

    Args:
        queries: Q embeddings. Items with the query's id, or with its label and group, are ignored.
        gallery: G embeddings.
        processes: the processes that share the blocks; all get the result.
        progress: whether to show a progress bar if the search takes longer than two seconds.
    """
    pairs = PairSimilarities(queries, gallery, processes, progress)
    size, device = len(queries.labels), pairs.device
    best = torch.full((2, size), -torch.inf, device=device)
    items = torch.zeros(2, size, dtype=torch.int64, device=device)
    for block in pairs.blocks("Searching"):
        part = slice(block.first_query, block.first_query + len(block.similarities))
        masks: tuple[Tensor | None, ...] = (None,)  # the block has no item of a query's class
        if block.is_genuine is not None and block.is_ignored is not None:
            masks = ~(block.is_genuine | block.is_ignored), block.is_genuine
        for kind, mask in enumerate(masks):
            similarities = block.similarities if mask is None else block.similarities.masked_fill(~mask, -torch.inf)
            values, columns = similarities.max(1)
            is_better = values > best[kind, part]
            best[kind, part] = torch.where(is_better, values, best[kind, part])
            items[kind, part] = torch.where(is_better, columns + block.first_item, items[kind, part])
    exact = [_exact(pairs, values, found) for values, found in zip(best, items, strict=True)]
    merged = _maximum(torch.stack(exact), processes)
    order = queries.labels.argsort(stable=True)
    return BestMatches(*torch.empty_like(merged).index_copy_(1, order, merged).flip(0))


def _exact(pairs: PairSimilarities, best: Tensor, items: Tensor) -> Tensor:
    """Similarities (Q,) of the queries and these items (Q,), in float64 and rounded to float32; keeps -inf."""
    exact = best.clone()
    for query in torch.split(best.isfinite().nonzero().squeeze(1), FLOAT64_ROWS):
        queries, gallery = pairs.queries.embeddings.select(query), pairs.gallery.embeddings.select(items[query])
        exact[query] = (queries * gallery).sum(1).float()
    return exact


def _maximum(values: Tensor, processes: Processes) -> Tensor:
    """The elementwise maximum of `values` over the processes."""
    if processes.world_size == 1:
        return values
    gathered = torch.zeros(processes.world_size, *values.shape, device=values.device)
    gathered[processes.rank] = values.nan_to_num(neginf=-2.0)  # below each similarity; infinity times 0 is no number
    maxima = processes.total(gathered).amax(0)
    return maxima.masked_fill(maxima == -2, -torch.inf)
