"""Recall, bytes and time of embeddings that are stored in different ways."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from time import perf_counter

import torch
from tqdm.auto import tqdm

from lightning_recall.checks import check_integer
from lightning_recall.compression.approximate import (
    IndexRecipe,
    approximate_index,
    has_faiss,
    index_bytes,
    index_recipes,
)
from lightning_recall.compression.dimensions import PCA
from lightning_recall.compression.protocol import MAX_QUERIES, ListSearch, RetrievalProtocol
from lightning_recall.compression.searches import FaissSearch, RescoredSearch, exact_search, in_order
from lightning_recall.compression.size_rows import SizeRow
from lightning_recall.compression.variants import Source, Variant
from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.search import EmbeddingBlocks

MAX_TIMED = 1000  # queries, in one batch: faiss multiplies small batches of few dimensions without BLAS
NUM_WARM_UP = 32  # queries
MIN_DIM = 32  # halving stops here


def size_table(
    embedding_set: EmbeddingSet,
    ks: Sequence[int] = (1, 10),
    fit: EmbeddingSet | None = None,
    dims: Sequence[int] | None = None,
    oversampling: int = 4,
    max_queries: int = MAX_QUERIES,
    progress: bool = False,
) -> list[SizeRow]:
    """Scores embeddings that are stored in different ways, by the protocol of `RetrievalScores`.

    The rows: all dimensions in float32; fewer dimensions, the leading ones or by PCA; float16; int8 with a scale for
    each dimension; signs, with and without centring, searched by Hamming distance, alone or with rescoring; and, if
    faiss is installed, its IVF, HNSW, PQ and IVF-PQ indexes. Gallery items are compressed. Queries are not, except in
    dimension, and for Hamming distance.

    Exact searches are scored by exact ranks. Rescored and approximate searches are scored by their lists, of max(ks)
    items for recall and of R for mAP@R, after the query itself and items of its group are removed. Ties count against
    the query in every row. Hamming distances often tie, so an index that breaks ties by chance finds more.

    Args:
        embedding_set: with labels, as `read_embedding_set` returns it.
        ks: cut-offs of recall.
        fit: embeddings of other images by the same model: means, principal components, scales and centroids are fitted
            on them. None: on the gallery, without labels, which is slightly optimistic for a gallery that grows.
        dims: fewer dimensions to try, each from 1 to D - 1. None: D / 2, D / 4, ..., at least 32.
        oversampling: candidates that are rescored for each item that is asked for, at least 2.
        max_queries: if there are more queries, this many of them are scored and timed, the same ones in every row and
            every call. All of them are compared with the whole gallery.
        progress: whether to show a progress bar over the rows.

    Returns:
        The rows, by ascending bytes.

    Raises:
        ValueError: if there are no labels or no query has a relevant item; for `ks`, `dims` or `max_queries` out of
            range; for embeddings of dimension 1; if `fit` holds the same embeddings, those of another model, or of
            another D.

    >>> from pathlib import Path
    >>> embeddings = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    >>> labels = torch.arange(300) // 4
    >>> random = EmbeddingSet(Path("random"), embeddings, torch.arange(300), labels)
    >>> rows = size_table(random, ks=(1,), dims=(32,))
    >>> next((row.bytes_per_image, row.shared_bytes) for row in rows if row.method == "int8")
    (64, 256)
    """
    check_integer("oversampling", oversampling, 2)
    protocol = RetrievalProtocol(embedding_set, ks, max_queries)
    embeddings = embedding_set.embeddings
    dims = _checked_dims(dims, embeddings.shape[1])
    _check_fit(embedding_set, fit)
    gallery = in_order(EmbeddingBlocks(embeddings), protocol.gallery)
    source = Source(embeddings, gallery if fit is None else EmbeddingBlocks(fit.embeddings))
    rows = _Rows(protocol, source, gallery)
    steps = [*rows.exact(dims), *rows.binary(oversampling), *rows.approximate()]
    bar = tqdm(steps, desc="Sizes", unit="row", disable=not progress, leave=False)
    return sorted((row for step in bar for row in step()), key=lambda row: row.bytes_per_image)


Step = Callable[[], Iterator[SizeRow]]
"""computes rows; what it needs is freed when it ends"""


class _Rows:
    """The rows of one table.

    Args:
        protocol: queries and gallery.
        source: embeddings of N items.
        gallery: those of the gallery.
    """

    def __init__(self, protocol: RetrievalProtocol, source: Source, gallery: EmbeddingBlocks) -> None:
        self.protocol, self.source, self.gallery = protocol, source, gallery

    def exact(self, dims: Sequence[int]) -> list[Step]:
        """Float32 of all and fewer dimensions, float16, int8."""
        source = self.source
        steps = [self._scan(source.full), self._scan(source.half), self._scan(source.int8)]
        steps += [self._scan(partial(source.full, f"leading {dim}", dim)) for dim in dims]
        most = min(source.dim, len(source.fit) - 1)
        for dim in dims:
            if dim <= most:
                steps.append(self._scan(partial(self._principal, dim), lambda: self.pca[1]))
            else:
                warnings.warn(
                    f"No row for PCA to {dim} dimensions: it needs more than {dim} embeddings to fit, got "
                    f"{len(source.fit)}.",
                    stacklevel=3,
                )
        return steps

    @cached_property
    def pca(self) -> tuple[PCA, float]:
        """All principal components, and the seconds that it took to fit them."""
        start = perf_counter()
        pca = PCA.fit(self.source.fit)
        return pca, perf_counter() - start

    def _principal(self, dim: int) -> Variant:
        """Principal components of all items."""
        return self.source.principal(self.pca[0], dim)

    def _scan(self, make: Callable[[], Variant], fit_seconds: Callable[[], float] = lambda: 0.0) -> Step:
        """A row of an exact search; what several rows share is fitted before, in `fit_seconds`."""

        def step() -> Iterator[SizeRow]:
            seconds_before = fit_seconds()
            start = perf_counter() - seconds_before
            variant = make()
            search = exact_search(variant, self.protocol.gallery)
            seconds = perf_counter() - start
            scores = self.protocol.exact_scores(variant.queries, variant.items)
            yield self._row(variant, search, scores, seconds)

        return step

    def binary(self, oversampling: int) -> list[Step]:
        """Hamming distance alone, rescored by the same bits, and rescored by int8."""
        return [partial(self._binary, center, oversampling) for center in (False, True)]

    def _binary(self, center: bool, oversampling: int) -> Iterator[SizeRow]:
        start = perf_counter()
        variant = self.source.binary(center)
        coarse = exact_search(variant, self.protocol.gallery)
        seconds = perf_counter() - start
        yield self._row(variant, coarse, self.protocol.hamming_scores(variant.items), seconds)
        start = perf_counter()
        int8 = self.source.int8()
        int8_seconds = perf_counter() - start
        name = f"{variant.method}, x{oversampling}"
        finer = self.source.float_queries(variant)._replace(method=f"{name} float")
        both = int8._replace(
            method=f"{name} int8", family="binary", shared_bytes=variant.shared_bytes + int8.shared_bytes
        )
        for fine, more_bytes, more_seconds in ((finer, 0, 0.0), (both, variant.bytes_per_image, int8_seconds)):
            codes, gallery = torch.as_tensor(fine.items.pieces[0]), self.protocol.gallery
            codes = codes if len(gallery) == len(codes) else codes[gallery]
            engine = "torch" if coarse.engine == "torch" else f"{coarse.engine}, torch"
            search = RescoredSearch(coarse, fine.queries, codes, oversampling, engine)
            row = self._row(fine, search, self.protocol.list_scores(search), seconds + more_seconds)
            yield row._replace(bytes_per_image=row.bytes_per_image + more_bytes)

    def approximate(self) -> list[Step]:
        """Indexes of faiss."""
        if not has_faiss():
            warnings.warn(
                'No rows for faiss, which is not installed: pip install "lightning-recall[faiss]".', stacklevel=3
            )
            return []
        steps: list[Step] = []
        for recipe in index_recipes(len(self.gallery), self.source.dim):
            if len(self.source.fit) < recipe.min_points:
                warnings.warn(
                    f"No row for {recipe.method}: it needs {recipe.min_points} embeddings to fit, got "
                    f"{len(self.source.fit)}.",
                    stacklevel=3,
                )
            else:
                steps.append(partial(self._approximate, recipe))
        return steps

    def _approximate(self, recipe: IndexRecipe) -> Iterator[SizeRow]:
        start = perf_counter()
        index, shared_bytes = approximate_index(self.gallery, self.source.fit, recipe)
        seconds = perf_counter() - start
        search = FaissSearch(index, EmbeddingBlocks(self.source.embeddings))
        variant = self.source.full()._replace(method=recipe.method, family="faiss", shared_bytes=shared_bytes)
        row = self._row(variant, search, self.protocol.list_scores(search), seconds)
        yield row._replace(bytes_per_image=(index_bytes(index) - shared_bytes) / len(self.gallery))

    def _row(self, variant: Variant, search: ListSearch, scores: dict[str, float], seconds: float) -> SizeRow:
        """The row of a variant, with the time of its search for max(ks) items."""
        sizes = variant.items.dim, variant.bytes_per_image, variant.shared_bytes
        ms = self._search_ms(search)
        num_queries = len(self.protocol.queries)
        return SizeRow(variant.method, variant.family, *sizes, scores, num_queries, seconds, ms, search.engine)

    def _search_ms(self, search: ListSearch) -> float:
        """Milliseconds a query, of a batch of up to 1,000 evenly spaced queries, after a short search for warm-up."""
        protocol = self.protocol
        step = -(-len(protocol.queries) // MAX_TIMED)
        queries = protocol.queries[::step]
        protocol.first(search, queries[:NUM_WARM_UP], max(protocol.ks))
        start = perf_counter()
        protocol.first(search, queries, max(protocol.ks))
        return 1000 * (perf_counter() - start) / len(queries)


def _checked_dims(dims: Sequence[int] | None, dim: int) -> list[int]:
    """The dimensions to try."""
    if dim < 2:
        raise ValueError(f"embeddings must have at least 2 dimensions to make them smaller, got {dim}.")
    if dims is None:
        return [dim >> halvings for halvings in range(1, dim.bit_length()) if dim >> halvings >= MIN_DIM]
    for value in dims:
        check_integer("dims", value, 1)
    if len(set(dims)) < len(dims) or max(dims, default=1) >= dim:
        raise ValueError(f"dims must be distinct and from 1 to {dim - 1}, below the dimension {dim}, got {list(dims)}.")
    return list(dims)


def _check_fit(embedding_set: EmbeddingSet, fit: EmbeddingSet | None) -> None:
    """Raises ValueError unless `fit` holds other embeddings of the same dimension and, as far as known, model."""
    if fit is None:
        return
    if fit.path.resolve() == embedding_set.path.resolve():
        raise ValueError(
            f"{fit.path} is both fitted on and evaluated: fit on embeddings of other images, or omit it to fit on the "
            "gallery."
        )
    dim, fit_dim = embedding_set.embeddings.shape[1], fit.embeddings.shape[1]
    if dim != fit_dim:
        raise ValueError(
            f"{fit.path} has embeddings of dimension {fit_dim}, {embedding_set.path} of {dim}: pass equal ones."
        )
    weights, fit_weights = embedding_set.model.get("weights"), fit.model.get("weights")
    if weights and fit_weights and weights != fit_weights:
        raise ValueError(
            f"{fit.path} comes from another model (weights {fit_weights[:8]}) than {embedding_set.path} (weights "
            f"{weights[:8]}): embed the other images with the same weights."
        )
