"""Smooth ranks of a batch, block by block, with gradients in closed form: the room that all rank losses share.

The rank of a positive x for a query q is one plus the number of items more similar to q than x is. Its smooth form
replaces each comparison by a sigmoid of width `rank_temperature` (tau_2 in the paper):

    rank(q, x) = 1 + sum over z not in {q, x} of sigmoid((s_qz - s_qx) / tau_2)

A loss over these ranks needs N x P x N comparisons. They are made for a few queries at a time, and since
sigmoid' = sigmoid (1 - sigmoid), the same comparisons give the gradient of those queries at once: nothing is kept for
the backward pass but the gradient of the embeddings.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.losses.base import check_batch, check_finite
from lightning_recall.losses.closed_form import first_order
from lightning_recall.losses.gallery import Gallery, MixedGallery, VirtualPairs
from lightning_recall.losses.heaviside import Comparison, Positives, Sigmoid

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Ranks (Q, P), which of them count (Q, P) bool, and the similarities of those positives (Q, P), in units of the
temperature -> one value a query (Q,), to be minimised."""

BLOCK_ELEMENTS = 2**22  # similarities held at a time, 16 MiB in fp32,
BLOCK_ROWS = 256  # but of so many queries at least: matrix products want many rows
PART_ELEMENTS = 2**21  # comparisons held at a time, 8 MiB in fp32: six passes go over them, best in cache
DEVICE_ELEMENTS = 2**25  # of either on a GPU, 128 MiB: it would wait for the 70 kernels of a smaller part to start
FAR_BEHIND = -50.0  # temperatures from where an item does not count at all: sigmoid is 2e-22
NEGLIGIBLE = 1e-16  # slopes of the objective below are dropped; without these two, numbers near the smallest float
# would come up in trained networks, over which processors crawl

ACTIVE = 1e-6  # a positive whose rank moves its query's value by less, per rank, teaches nothing


class RankLoss(NamedTuple):
    """A loss over ranks, and what came to light on the way.

    Attributes:
        loss: scalar, the mean over the queries.
        first_match: (Q,) exact rank of each query's most similar positive among the items of other classes, from 1;
            ties count against it. Recall@k as a hit rate is the share that is at most k.
        active: scalar, share of the pairs of query and positive whose rank moves the value by more than 1e-6 a rank.
    """

    loss: Tensor
    first_match: Tensor
    active: Tensor

    def diagnostics(self, ks: Sequence[int]) -> dict[str, Tensor]:
        """The exact hit rate within the batch, "recall@k", and "active_positives" if there was a gradient."""
        found = {f"recall@{k}": (self.first_match <= k).float().mean() for k in ks}
        return {**found, "active_positives": self.active} if self.loss.requires_grad else found


class RankingConfig(NamedTuple):
    """What is made of the similarities."""

    objective: Objective
    temperature: float
    comparison: Comparison
    count_query: bool


def find_positives(labels: Tensor) -> Positives:
    """Queries of a batch, those with few positives first, and the rows of the same label as each, itself left out.

    Args:
        labels: (N,) integers, any order, classes of any size.

    Returns:
        The queries that have a positive, sorted by the number of positives, so that a block pads little.
    """
    order = torch.argsort(labels, stable=True)  # rows of one class side by side
    _, inverse, counts = torch.unique_consecutive(labels[order], return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    size, start = counts[inverse], starts[inverse]  # (N,) of each sorted row's class
    by_size = torch.argsort(size, stable=True)
    by_size = by_size[size[by_size] > 1]
    size, start = size[by_size], start[by_size]

    width = int(counts.max()) - 1 if len(counts) else 0
    slot = torch.arange(width, device=labels.device)  # (P,)
    own = by_size - start  # the query's place in its class, stepped over
    place = start[:, None] + slot + (slot >= own[:, None])
    valid = slot < size[:, None] - 1
    items = order[place.clamp(max=max(len(labels) - 1, 0))]
    return Positives(order[by_size], items, valid)


def smooth_rank_loss(
    embeddings: Tensor,
    labels: Tensor,
    objective: Objective,
    rank_temperature: float,
    count_query: bool = False,
    queries: slice | Tensor | None = None,
    pairs: VirtualPairs | None = None,
    comparison: Comparison | None = None,
) -> RankLoss:
    """Mean of `objective` over the queries of a batch, differentiable with respect to the embeddings.

    Args:
        embeddings: (N, D) floating point, unit length if similarities are to be cosines. Half-precision embeddings,
            and autocast, are computed in fp32; fp64 stays fp64. The gradient has no second derivative.
        labels: (N,) integers.
        objective: gives each query's value from its positives' ranks and similarities; differentiated by autograd with
            respect to these only: parameters in it get no gradient.
        rank_temperature: width of the comparison, above 0, in units of similarity.
        count_query: whether the query stands in its own ranking, as in the published code.
        queries: rows that query, each once; all rows are searched whatever it is. None: all. The means of disjoint
            parts, weighted by their numbers of queries with a positive, add up to the whole, in value and gradient.
        pairs: M virtual items to add (SiMix), such as `SimilarityMixup.draw` gives: rows of two items of one class and
            the share of the first. They query and are searched as rows N, N + 1, ... The same as appending their
            embeddings, but faster.
        comparison: smooth form of the comparison; None: the sigmoid.

    Returns:
        The loss, and by the way the exact rank of each query's first match and the share of positives with gradient.
        Queries without a positive do not count.

    Raises:
        ValueError: where shapes, dtypes or devices do not fit, embeddings are not finite, or no query has a positive.
    """
    embeddings, labels = check_batch(embeddings, labels)
    check_finite(embeddings)
    if pairs is not None:
        labels = torch.cat([labels, labels[pairs[0]]])
    positives = find_positives(labels)
    if queries is not None:
        asked = torch.zeros_like(labels, dtype=torch.bool)
        asked[queries] = True
        positives = Positives(*(part[asked[positives.queries]] for part in positives))
    if len(positives.queries) == 0:
        raise ValueError(
            f"No query has a positive: none of them shares its label with another of the {len(labels)} items. "
            "Draw batches with at least 2 samples per class (ClassBalancedBatchSampler does)."
        )
    if not torch.is_grad_enabled():
        embeddings = embeddings.detach()
    ranking = RankingConfig(objective, rank_temperature, comparison or Sigmoid(), count_query)
    return RankLoss(*_SmoothRankLoss.apply(embeddings, positives, ranking, pairs))


class PerQuery(NamedTuple):
    """What came out for each query (Q,).

    Made once and filled part by part: small tensors that outlive a part would cut up the memory that the next needs.

    Attributes:
        value: the objective's.
        first_match: rank of its first match.
        active: how many of its positives have gradient.
        moves: bool, whether it has any gradient.
    """

    value: Tensor
    first_match: Tensor
    active: Tensor
    moves: Tensor


class _SmoothRankLoss(torch.autograd.Function):
    """Computes the loss and, while the comparisons are at hand, its gradient; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        positives: Positives,
        ranking: RankingConfig,
        pairs: VirtualPairs | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(embeddings.device.type, enabled=False):
            gallery = Gallery(embeddings) if pairs is None else MixedGallery(embeddings, pairs)
            gradient = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
            width = positives.valid.sum(1)  # ascending
            buffer = embeddings.new_empty(0)  # new memory for each block would cost a sixth of its product
            told = PerQuery(embeddings.new_empty(len(width)), width.clone(), width.clone(), width > 0)
            start = 0
            for block in blocks(positives, width.tolist(), len(gallery)):
                stop = start + sum(len(part.queries) for part in block)
                accumulate_block(
                    gallery, block, ranking, gradient, buffer, PerQuery(*(column[start:stop] for column in told))
                )
                start = stop
            active = told.active.sum() / width.sum()
            if gradient is not None:
                ctx.save_for_backward(gradient.div_(len(width)), embeddings)
            ctx.mark_non_differentiable(told.first_match, active)
            return told.value.mean(), told.first_match, active

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return first_order(*ctx.saved_tensors) * grad_output, None, None, None


def blocks(positives: Positives, widths: list[int], num_items: int) -> Iterator[list[Positives]]:
    """Cuts the queries into blocks of so many similarities, and each block into parts of so many comparisons.

    Queries come with their numbers of positives, `widths`, in ascending order; a part is padded to its own largest.
    """
    on_cpu = positives.queries.device.type == "cpu"
    of_block, of_part = (BLOCK_ELEMENTS, PART_ELEMENTS) if on_cpu else (DEVICE_ELEMENTS, DEVICE_ELEMENTS)
    num_rows = max(BLOCK_ROWS, of_block // num_items)
    for start in range(0, len(widths), num_rows):
        stop, first, parts = min(start + num_rows, len(widths)), start, []
        while first < stop:
            last = first + 1
            while last < stop and (last + 1 - first) * widths[last] * num_items <= of_part:
                last += 1
            queries, items, valid = positives
            width = widths[last - 1]
            parts.append(Positives(queries[first:last], items[first:last, :width], valid[first:last, :width]))
            first = last
        yield parts


def accumulate_block(
    gallery: Gallery,
    parts: list[Positives],
    ranking: RankingConfig,
    gradient: Tensor | None,
    buffer: Tensor,
    told: PerQuery,
) -> None:
    """Adds a block's part of the gradient into `gradient` (N, D), if given; `buffer`, of any size, is worked in."""
    queries = torch.cat([part.queries for part in parts])
    rows = gallery.rows(queries)  # (q, D)
    similarities = buffer.resize_(len(rows), len(gallery))  # in units of the temperature
    gallery.similarities(rows / ranking.temperature, out=similarities)
    sizes = [len(part.queries) for part in parts]
    columns = zip(*(torch.split(column, sizes) for column in told), strict=True)
    for slice_, part, cells in zip(torch.split(similarities, sizes), parts, columns, strict=True):
        compare(slice_, part, ranking, gradient is not None, PerQuery(*cells))
    if gradient is not None:
        weights = similarities  # dL/ds, which `compare` has left there
        if weights.device.type == "cpu":  # elsewhere it would wait for the device
            moving = told.moves.nonzero().squeeze(1)
            if len(moving) < 0.8 * len(queries):  # far beyond every k the loss is flat
                queries, rows, weights = queries[moving], rows[moving], weights[moving]
        gallery.add_gradient(gradient, queries, rows, weights)


def compare(similarities: Tensor, part: Positives, ranking: RankingConfig, with_gradient: bool, told: PerQuery) -> None:
    """Ranks the positives of some queries by `similarities` (q, N), in units of the temperature.

    With gradient, the objective's derivative by the similarities, in their own unit, takes their place.
    """
    queries, items, valid = part
    at_positives = similarities.gather(1, items)  # (q, P)
    own = similarities.gather(1, queries[:, None])
    similarities.scatter_(1, queries[:, None], -torch.inf)  # sigmoid 0: the query is never more similar than anything
    told.first_match.copy_(rank_of_best(similarities, at_positives.masked_fill(~valid, -torch.inf)))
    if ranking.count_query:
        similarities.scatter_(1, queries[:, None], own)

    differences = similarities[:, None, :] - at_positives[:, :, None]  # (q, P, N)
    F.threshold(differences, FAR_BEHIND, -torch.inf, inplace=True)
    ahead, slopes = ranking.comparison(differences, at_positives, part, with_gradient)
    ranks = ahead.add_(1)
    if slopes is None:
        told.value.copy_(ranking.objective(ranks, valid, at_positives))
        told.active.zero_()
        return
    ranks.requires_grad_()
    at_positives.requires_grad_()
    with torch.enable_grad():
        values = ranking.objective(ranks, valid, at_positives)
        by_rank, by_positive = torch.autograd.grad(values.sum(), (ranks, at_positives), materialize_grads=True)
    by_rank, by_positive = (F.hardshrink(given * valid, NEGLIGIBLE) for given in (by_rank, by_positive))
    told.value.copy_(values.detach())
    told.active.copy_((by_rank.abs() > ACTIVE).sum(1))
    told.moves.copy_((by_rank.abs() + by_positive.abs()).any(1))
    by_rank, by_positive = by_rank / ranking.temperature, by_positive / ranking.temperature
    torch.bmm(by_rank[:, None, :], slopes, out=similarities[:, None, :])
    similarities.scatter_add_(1, items, by_positive - by_rank * slopes.sum(2))  # raising s_qx lowers x's own rank


def rank_of_best(similarities: Tensor, at_positives: Tensor) -> Tensor:
    """One plus the number of items of other classes that are at least as similar as the best positive, (q,)."""
    best = at_positives.amax(1, keepdim=True)
    ahead = torch.ge(similarities, best, out=torch.empty_like(similarities))  # floats are summed four times as fast
    return 1 + ahead.sum(1).long() - (at_positives >= best).sum(1)
