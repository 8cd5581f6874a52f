"""Similarities of all genuine and impostor pairs, in two passes: a histogram, then the exact values of some bins.

Bounded memory: a block, a histogram of 2^16 bins, and the pairs of the bins that the caller selects.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lightning_recall.checks import check_finite
from lightning_recall.search.count_ahead import ALONE, Processes, block_pairs
from lightning_recall.search.ranks import FLOAT64_ROWS, block_shape, full_precision, square_block_shape
from lightning_recall.search.relevant_ranks import PROGRESS_BAR_OPTIONS, LabelledEmbeddings

NUM_BINS = 2**16
BINS_PER_UNIT = 2**15 - 2  # similarities of slightly more than 1, by rounding, fall into the last bins
ZERO_BIN = 2**15  # bin of similarity 0
BIN_ROUNDING = 2.0**-7  # rounding of the bin number in float32, in bins
DENSE = 16  # a block with more than one selected pair in 16 is computed as a whole in float64


class ExactPairs(NamedTuple):
    """The pairs of the selected bins.

    similarities: (n,) computed in float64 and rounded to float32.
    bins: (n,) bin of the blockwise float32 similarity.
    is_genuine: (n,) bool.
    """

    similarities: Tensor
    bins: Tensor
    is_genuine: Tensor


class PairBlock(NamedTuple):
    """Similarities (q, g) of consecutive queries and gallery items; masks (q, g), None if no pair shares a label."""

    first_query: int
    first_item: int
    similarities: Tensor
    is_genuine: Tensor | None
    is_ignored: Tensor | None


class PairSimilarities:
    """The similarities of all pairs of a query and a gallery item: genuine (same label) and impostor (other labels).

    A pair of an item with itself (same id), and a pair with the same label and the same group, is ignored.

    Args:
        queries: Q embeddings of at most unit length.
        gallery: G embeddings; None: the pairs are the N (N - 1) / 2 pairs of the queries.
        processes: the processes that share the blocks; all get the result.
        progress: whether to show a progress bar if a pass takes longer than two seconds.
    """

    def __init__(
        self,
        queries: LabelledEmbeddings,
        gallery: LabelledEmbeddings | None = None,
        processes: Processes = ALONE,
        progress: bool = False,
    ) -> None:
        self.queries = queries.reordered(queries.labels.argsort(stable=True))
        self.gallery = self.queries if gallery is None else gallery.reordered(gallery.labels.argsort(stable=True))
        self.is_one_set = gallery is None
        self.processes, self.progress = processes, progress
        self.device = queries.labels.device
        self.shape = square_block_shape(self.device) if self.is_one_set else block_shape(self.device)

    @property
    def margin(self) -> int:
        """Bins on each side of a bin whose pairs may belong into it, because of rounding in float32.

        The rounding error of a similarity is that of `RankCounter`; a bin's neighbours must cover twice the error.
        """
        tolerance = (2 * self.queries.embeddings.dim**0.5 + 4) * 2.0**-24
        return int(2 * (tolerance * BINS_PER_UNIT + BIN_ROUNDING)) + 1

    def histogram(self) -> Tensor:
        """First pass: numbers of genuine and impostor pairs in each bin, (2, NUM_BINS) int64."""
        counts = torch.zeros(2, NUM_BINS + 1, dtype=torch.int64, device=self.device)
        buffers = self._buffers()
        for block in self.blocks("Counting pairs"):
            bins = _bins(block, *buffers)
            if block.is_genuine is not None:
                counts[0] += torch.bincount(bins[block.is_genuine.flatten()], minlength=NUM_BINS + 1)
            counts[1] += torch.bincount(bins, minlength=NUM_BINS + 1)
        counts = self.processes.total(counts)
        counts[1] -= counts[0]
        return counts[:, :NUM_BINS]

    def select(self, is_selected: Tensor) -> ExactPairs:
        """Second pass: the exact similarities of all pairs in the selected bins.

        Args:
            is_selected: (NUM_BINS,) bool.
        """
        table = torch.cat([is_selected, is_selected.new_zeros(1)])  # the last bin holds ignored pairs
        parts = [ExactPairs(*(torch.zeros(0, dtype=dtype, device=self.device) for dtype in EXACT_DTYPES))]
        buffers = self._buffers()
        is_found = torch.empty(math.prod(self.shape), dtype=torch.bool, device=self.device)
        for block in self.blocks("Selecting pairs"):
            bins = _bins(block, *buffers)
            positions = torch.index_select(table, 0, bins, out=is_found[: len(bins)]).nonzero().squeeze(1)
            if len(positions):
                is_genuine = torch.zeros_like(positions, dtype=torch.bool)
                if block.is_genuine is not None:
                    is_genuine = block.is_genuine.flatten()[positions]
                parts.append(ExactPairs(self._exact(block, positions), bins[positions], is_genuine))
        return ExactPairs(*(_gather(torch.cat(column), self.processes) for column in zip(*parts, strict=True)))

    def blocks(self, description: str) -> Iterator[PairBlock]:
        """This process's blocks; each is overwritten by the next."""
        rank, world_size, _ = self.processes
        order = torch.arange(len(self.queries.labels), device=self.device)
        buffer = torch.empty(math.prod(self.shape), device=self.device)
        total = len(order) * len(self.gallery.labels) // (1 + self.is_one_set)
        options = {**PROGRESS_BAR_OPTIONS, "desc": description, "disable": not self.progress or rank > 0}
        embeddings = (self.queries.embeddings, self.gallery.embeddings)
        with full_precision(self.device), tqdm(total=total, **options) as bar:
            blocks = block_pairs(*embeddings, order, self.shape, self.is_one_set)
            for number, (query_block, part, item_block, items) in enumerate(blocks):
                if number % world_size == rank:
                    check_finite(part)
                    check_finite(items)
                    similarities = buffer[: len(part) * len(items)].view(len(part), len(items))
                    torch.mm(part, items.T, out=similarities)
                    yield self._block(similarities, query_block, item_block)
                bar.update(len(part) * len(items))

    def _buffers(self) -> tuple[Tensor, Tensor]:
        """Memory for the bin numbers of a block, in float32 and int32: allocating them per block is slower."""
        size = math.prod(self.shape)
        return torch.empty(size, device=self.device), torch.empty(size, dtype=torch.int32, device=self.device)

    def _block(self, similarities: Tensor, query_block: int, item_block: int) -> PairBlock:
        """Adds the masks of genuine and ignored pairs; labels are sorted, so that few blocks have any."""
        first_query, first_item = query_block * self.shape[0], item_block * self.shape[1]
        queries = slice(first_query, first_query + len(similarities))
        items = slice(first_item, first_item + similarities.shape[1])
        labels, item_labels = self.queries.labels[queries], self.gallery.labels[items]
        if labels[-1] < item_labels[0] or labels[0] > item_labels[-1]:
            return PairBlock(first_query, first_item, similarities, None, None)
        same_label = labels[:, None] == item_labels  # (q, g)
        is_ignored = same_label & (self.queries.ids[queries, None] == self.gallery.ids[items])
        if self.queries.groups is not None and self.gallery.groups is not None:
            is_ignored |= same_label & (self.queries.groups[queries, None] == self.gallery.groups[items])
        if self.is_one_set and query_block == item_block:
            is_ignored |= torch.ones_like(is_ignored).tril()
        return PairBlock(first_query, first_item, similarities, same_label & ~is_ignored, is_ignored)

    def _exact(self, block: PairBlock, positions: Tensor) -> Tensor:
        """Similarities (n,) of pairs at positions (n,) of a block, computed in float64 and rounded to float32."""
        num_items = block.similarities.shape[1]
        rows, columns = positions // num_items, positions % num_items
        queries, gallery = self.queries.embeddings, self.gallery.embeddings
        if len(positions) * DENSE > block.similarities.numel():
            row_range = torch.arange(len(block.similarities), device=self.device) + block.first_query
            column_range = torch.arange(num_items, device=self.device) + block.first_item
            return (queries.select(row_range) @ gallery.select(column_range).T).float()[rows, columns]
        parts = torch.split(torch.stack([rows + block.first_query, columns + block.first_item]), FLOAT64_ROWS, 1)
        return torch.cat([(queries.select(row) * gallery.select(column)).sum(1).float() for row, column in parts])


EXACT_DTYPES = (torch.float32, torch.int32, torch.bool)


def bin_edges() -> NDArray[np.float64]:
    """Lower edges (NUM_BINS,) of the bins."""
    return (np.arange(NUM_BINS) - ZERO_BIN) / BINS_PER_UNIT


def bin_of(similarities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bins (n,) of similarities (n,) in float64; values outside of the bins are in the first or last bin.

    >>> bin_of(np.array([-1.0, 0.0, 1.0, 2.0]))
    array([    2, 32768, 65534, 65535])
    """
    scaled = np.floor(similarities.astype(np.float64) * BINS_PER_UNIT + ZERO_BIN)
    return scaled.clip(0, NUM_BINS - 1).astype(np.int64)


def _bins(block: PairBlock, scaled: Tensor, bins: Tensor) -> Tensor:
    """The bin (q * g,) of each pair of a block, in the given memory; that of ignored pairs is NUM_BINS."""
    size = block.similarities.numel()
    scaled, bins = scaled[:size], bins[:size]
    zero_bin = torch.tensor(float(ZERO_BIN), device=scaled.device)
    bins.copy_(torch.add(zero_bin, block.similarities.flatten(), alpha=BINS_PER_UNIT, out=scaled))
    if block.is_ignored is not None:
        bins[block.is_ignored.flatten()] = NUM_BINS
    return bins


def _gather(values: Tensor, processes: Processes) -> Tensor:
    """The values (n,) of all processes, in the order of the processes."""
    if processes.world_size == 1:
        return values
    counts = torch.zeros(processes.world_size, dtype=torch.int64, device=values.device)
    counts[processes.rank] = len(values)
    counts = processes.total(counts)
    start = int(counts[: processes.rank].sum())
    gathered = torch.zeros(int(counts.sum()), dtype=torch.float64, device=values.device)
    gathered[start : start + len(values)] = values.double()
    return processes.total(gathered).to(values.dtype)
