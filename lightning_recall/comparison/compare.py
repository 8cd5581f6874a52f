"""Compares the retrieval of two models on the same images: scores with intervals, classes and queries."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightning_recall.comparison.changes import Changes, find_changes
from lightning_recall.comparison.pairing import pair_sets
from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.metrics import Interval, RetrievalScores, class_bootstraps, score_intervals
from lightning_recall.search import SearchResult


class ScoreDifference(NamedTuple):
    """A score of both models, and the second minus the first, each with its interval over classes."""

    first: Interval
    second: Interval
    difference: Interval

    @property
    def verdict(self) -> str:
        """What the interval of the difference says, for the models A and B.

        >>> known = Interval(0.9, 0.8, 0.95, 1.0, 40)
        >>> ScoreDifference(known, known, Interval(0.02, 0.01, 0.03, 0.99, 40)).verdict
        'B is better'
        """
        if self.difference.reason:
            return f"not known: {self.difference.reason}"
        if self.difference.lower > 0:
            return "B is better"
        return "A is better" if self.difference.upper < 0 else "no difference is shown"


class ClassDifference(NamedTuple):
    """A class in both models.

    label: its label.
    name: its name; "" if not known.
    num_queries: number of its queries.
    first, second: mean of each score over its queries.
    gained, lost: number of its queries that only the second or only the first model answers right.
    """

    label: int
    name: str
    num_queries: int
    first: dict[str, float]
    second: dict[str, float]
    gained: int
    lost: int

    def difference(self, score: str) -> float:
        """Mean of a score in the second model minus that in the first."""
        return self.second[score] - self.first[score]


class Comparison(NamedTuple):
    """What `compare` finds; model A is the first, B the second.

    first, second: the embeddings, with the same images in the same order.
    results: the searches in both.
    scores: name of a score -> its difference.
    classes: sorted by the difference of the first score, smallest first.
    changes: the queries that only one model answers right.
    """

    first: EmbeddingSet
    second: EmbeddingSet
    results: tuple[SearchResult, SearchResult]
    scores: dict[str, ScoreDifference]
    classes: list[ClassDifference]
    changes: Changes

    @property
    def is_same_model(self) -> bool:
        """Whether both embeddings are known to come from the same weights."""
        weights = self.first.model.get("weights")
        return weights is not None and weights == self.second.model.get("weights")

    @property
    def main_score(self) -> str:
        """Name of the first score, by which classes are sorted."""
        return next(iter(self.scores))


def compare(
    first: EmbeddingSet,
    second: EmbeddingSet,
    scores: Sequence[str] = ("recall", "map@r"),
    ks: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Compares two models by their embeddings of the same images.

    Both are scored by `RetrievalScores`, with the roles and groups of the sets. The differences of each query are
    averaged, with a bootstrap interval over the classes: since both models have the same queries, it is narrower than
    the intervals of the two scores suggest.

    Args:
        first: embeddings of model A.
        second: embeddings of model B; other dimensions are allowed.
        scores: names of scores of `RetrievalScores`; classes are sorted by the first.
        ks: cut-offs of the scores that have one.
        seed: seed of the bootstrap.
        progress: whether searches that take longer than two seconds show a progress bar.

    Raises:
        ValueError: if a set has no labels, images or labels differ, no query has an image of its class in the gallery,
            or `scores` or `ks` are invalid.

    >>> from pathlib import Path
    >>> labels = torch.arange(60) // 3
    >>> random = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    >>> a = EmbeddingSet(Path("a"), random, torch.arange(60), labels)
    >>> b = EmbeddingSet(Path("b"), random + random[labels], torch.arange(60), labels)
    >>> compare(a, b).scores["recall@1"].verdict
    'B is better'
    """
    first, second = pair_sets(first, second)
    results = search(first, scores, ks, progress), search(second, scores, ks, progress)
    assert results[0].labels is not None  # `pair_sets` checks it
    labels = results[0].labels[results[0].queries]  # (Q,)
    differences = {name: results[1].scores[name] - values for name, values in results[0].scores.items()}
    intervals = (
        score_intervals(results[0], seed),
        score_intervals(results[1], seed),
        class_bootstraps(differences, labels, seed=seed, differences=True),
    )
    score_differences = {name: ScoreDifference(*(part[name] for part in intervals)) for name in differences}
    changes = find_changes(*results)
    return Comparison(first, second, results, score_differences, _classes(first, second, results, changes), changes)


def search(embeddings: EmbeddingSet, scores: Sequence[str], ks: Sequence[int], progress: bool) -> SearchResult:
    """Scores of each query of a set with labels; items of the result are positions in the set."""
    assert embeddings.labels is not None  # `pair_sets` checks it
    metric = RetrievalScores(tuple(scores), ks, progress=progress)
    roles = {name: getattr(embeddings, name) for name in ("is_query", "is_gallery", "groups")}
    metric.update(embeddings.embeddings, embeddings.labels, **roles)
    return metric.search()


def _classes(
    first: EmbeddingSet, second: EmbeddingSet, results: tuple[SearchResult, SearchResult], changes: Changes
) -> list[ClassDifference]:
    """Each class that has queries, sorted by the difference of the first score and by label."""
    assert first.labels is not None  # `pair_sets` checks it
    labels, class_of, counts = torch.unique(first.labels[results[0].queries], return_inverse=True, return_counts=True)
    means: list[dict[str, list[float]]] = []
    for result in results:
        sums = {name: torch.bincount(class_of, values, len(labels)) for name, values in result.scores.items()}
        means.append({name: (total / counts).tolist() for name, total in sums.items()})
    of_changed = torch.searchsorted(labels, first.labels[changes.queries])
    gained, lost = (
        torch.bincount(of_changed[changes.gained == is_gained], minlength=len(labels)).tolist()
        for is_gained in (True, False)
    )
    names = class_names(first) or class_names(second)
    classes = [
        ClassDifference(
            label,
            names.get(label, ""),
            int(counts[row]),
            {name: values[row] for name, values in means[0].items()},
            {name: values[row] for name, values in means[1].items()},
            gained[row],
            lost[row],
        )
        for row, label in enumerate(labels.tolist())
    ]
    main_score = next(iter(results[0].scores))
    return sorted(classes, key=lambda each: each.difference(main_score))


def class_names(embeddings: EmbeddingSet) -> dict[int, str]:
    """Label -> name of its class; empty if the names are not known."""
    if embeddings.classes is None or embeddings.labels is None:
        return {}
    return dict(zip(embeddings.labels.tolist(), embeddings.classes, strict=True))
