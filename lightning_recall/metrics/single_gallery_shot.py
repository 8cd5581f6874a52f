"""CMC with one gallery image per identity, the protocol of CUHK03, as an exact expectation."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recall.checks import ks_to_tuple
from lightning_recall.metrics.base import RetrievalMetric
from lightning_recall.metrics.states import concatenated_states, labelled_embeddings
from lightning_recall.search.embedding_blocks import BLOCK_SIZE, EmbeddingBlocks
from lightning_recall.search.relevant_ranks import LabelledEmbeddings

QUERIES_PER_BLOCK = 512
POSITIVES_PER_BLOCK = 2**10  # each is compared with the whole gallery: 8 KiB per gallery item


def rank_distribution(probabilities: Tensor, max_rank: int) -> Tensor:
    """Probabilities (P, max_rank) that the drawn positive has rank 1, ..., max_rank.

    The rank is 1 plus the number of other identities whose drawn image is ahead. The draws are independent, so this
    number has a Poisson binomial distribution, which is computed one identity at a time.

    Args:
        probabilities: (P, C) probability of each of the other identities to be ahead of each positive; float64.
        max_rank: last rank.

    >>> rank_distribution(torch.tensor([[0.5, 0.5]]), 3)
    tensor([[0.2500, 0.5000, 0.2500]])
    """
    distribution = probabilities.new_zeros(len(probabilities), max_rank)
    distribution[:, 0] = 1
    for probability in probabilities.T[:, :, None]:  # (P, 1) of each identity that may be ahead
        shifted = torch.roll(distribution, 1, 1)
        shifted[:, 0] = 0
        distribution = torch.lerp(distribution, shifted, probability)
    return distribution


class SingleGalleryShotCMC(RetrievalMetric):
    """CMC@k if the gallery has one image per identity, drawn at random: the expectation over all draws.

    For each query, one of the gallery images of each identity is drawn; CMC@k is the probability that the image of the
    query's identity is among the k nearest. This is the protocol of CUHK03 (Li et al., "DeepReID", CVPR 2014), which
    evaluation code approximates by drawing 10 or 100 times. Here the expectation is exact: a positive p is drawn with
    probability 1 / R; identity c is ahead of it with probability q_c(p), the fraction of its gallery images that are at
    least as similar; the number of identities ahead has a Poisson binomial distribution.

    Items without a gallery image of their identity are not queries. Gallery images with the identity and group of the
    query, such as images of the same camera, are ignored. Ties count against the query.

    Args:
        ks: cut-offs, integers, at least 1.
        normalize: True, the default: the similarity is the cosine. False: the dot product.
        ignore_index: items with this label are ignored; None ignores nothing.
        kwargs: keyword arguments passed to `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,); `compute` gives {"single_shot_cmc@1": scalar in [0, 1], ...}.

    Raises:
        ValueError: for invalid `ks`; in `compute`, without a query.

    >>> metric = SingleGalleryShotCMC(ks=(1, 2))
    >>> is_query = torch.tensor([True, False, False, False])
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.9, 0.1], [0.0, 1.0]])
    >>> metric.update(embeddings, torch.tensor([5, 5, 6, 6]), is_query=is_query, is_gallery=~is_query)
    >>> metric.compute()  # one of the two images of identity 6 is ahead
    {'single_shot_cmc@1': tensor(0.5000), 'single_shot_cmc@2': tensor(1.)}
    """

    def __init__(
        self,
        ks: int | Sequence[int] = (1, 5, 10, 20),
        normalize: bool = True,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_index, **kwargs)
        self.ks = ks_to_tuple(ks)
        self.normalize = normalize

    def compute(self) -> dict[str, Tensor]:
        """Computes the expected CMC; several processes share the queries."""
        states = concatenated_states(self, self.ignore_index)
        queries, gallery = (
            labelled_embeddings(states, states[name].nonzero().squeeze(1), self.normalize)
            for name in ("is_query", "is_gallery")
        )
        rank, world_size, total = self.processes()
        device = queries.labels.device
        cmc = torch.zeros(len(self.ks) + 1, dtype=torch.float64, device=device)  # sums over queries; their number
        local_queries = torch.arange(len(queries.labels), device=device).tensor_split(world_size)[rank]
        for block in torch.split(local_queries, QUERIES_PER_BLOCK):
            for values in expected_cmc(queries, gallery, block, max(self.ks)):  # (max(ks),)
                cmc[:-1] += values[torch.tensor(self.ks, device=device) - 1]
                cmc[-1] += 1
        cmc = total(cmc)
        if not cmc[-1]:
            raise ValueError(
                f"None of the {len(queries.labels)} items has a gallery image of its identity, so there are no "
                "queries: evaluate identities with at least 2 images, in different groups if there are any."
            )
        return {f"single_shot_cmc@{k}": value.float() for k, value in zip(self.ks, cmc[:-1] / cmc[-1], strict=True)}


def expected_cmc(
    queries: LabelledEmbeddings, gallery: LabelledEmbeddings, block: Tensor, max_rank: int
) -> Iterator[Tensor]:
    """Expected CMC (max_rank,) of each of the queries (b,) that has a positive.

    Args:
        queries: Q embeddings.
        gallery: G embeddings.
        block: (b,) indices of the queries.
        max_rank: last rank.
    """
    is_positive = queries.labels[block, None] == gallery.labels  # (b, G)
    is_ignored = queries.ids[block, None] == gallery.ids
    if queries.groups is not None and gallery.groups is not None:
        is_ignored |= queries.groups[block, None] == gallery.groups
    _, identity = torch.unique(gallery.labels, return_inverse=True)  # (G,)
    similarities = similarities_in_float64(queries.embeddings, gallery.embeddings, block)
    for values, same_label, ignored in zip(similarities, is_positive, is_ignored, strict=True):  # (G,) of a query
        positives = values[same_label & ~ignored]  # (R,)
        if not len(positives):
            continue
        distribution = torch.zeros(max_rank, dtype=torch.float64, device=values.device)
        for part in torch.split(positives, POSITIVES_PER_BLOCK):
            probabilities = ahead_probabilities(part, values[~same_label], identity[~same_label])
            distribution += rank_distribution(probabilities, max_rank).sum(0)
        yield distribution.cumsum(0) / len(positives)


def similarities_in_float64(queries: EmbeddingBlocks, gallery: EmbeddingBlocks, block: Tensor) -> Tensor:
    """Similarities (b, G) of queries (b,), computed in float64 and rounded to float32, so that equal images tie."""
    parts = torch.split(torch.arange(len(gallery), device=block.device), BLOCK_SIZE)
    selected = queries.select(block)
    return torch.cat([(selected @ gallery.select(part).T).float() for part in parts], 1)


def ahead_probabilities(positives: Tensor, similarities: Tensor, identity: Tensor) -> Tensor:
    """Probabilities (P, C) that the drawn image of an identity is ahead of a positive; only identities above 0.

    Args:
        positives: (P,) similarities of the positives.
        similarities: (n,) similarities of the images of other identities.
        identity: (n,) their identities.
    """
    is_ahead = similarities >= positives.min()
    ahead_identity, column = torch.unique(identity[is_ahead], return_inverse=True)
    counts = torch.zeros(len(positives), len(ahead_identity), dtype=torch.float64, device=positives.device)
    counts.index_add_(1, column, (similarities[is_ahead] >= positives[:, None]).double())
    return counts / torch.bincount(identity)[ahead_identity]
