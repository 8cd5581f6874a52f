"""Plots Recall@k against k, similarity histograms, and a 2-D PCA of the embeddings."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from lightning_recall.plots.labels import shorten_name
from lightning_recall.search.result import SearchResult

MAX_K = 1000  # last k of the Recall@k curve
MAX_QUERIES = 1000  # queries sampled for the similarity histogram
FINE_BINS = 4000  # bins for counting
BINS = 80  # at most this many are drawn over the non-empty range
MAX_CLASSES, MAX_ITEMS_PER_CLASS = 12, 60  # on the embedding map
BLUE, ORANGE = "#0072b2", "#d55e00"  # colour-blind safe (Okabe and Ito)
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "^", "s", "v", "D", "P")  # markers differ when colours repeat


class Chart(NamedTuple):
    """A chart yet to be drawn; `name` is the file name without suffix."""

    name: str
    title: str
    draw: Callable[[], Figure]


def charts_of(result: SearchResult, seed: int, class_names: Sequence[str] | None = None) -> list[Chart]:
    """The charts of a search; no embedding map if there are no class labels. `class_names`: name of each label."""
    similarities = partial(draw_similarities, result, seed)
    charts = [
        Chart("recall_over_k", "Recall@k over k", partial(draw_recall_over_k, result)),
        Chart("similarities", "Similarities of relevant and irrelevant pairs", similarities),
    ]
    if result.labels is not None:
        charts.append(
            Chart("embedding_map", "Embeddings in 2-D", partial(draw_embedding_map, result, seed, class_names))
        )
    return charts


def draw_recall_over_k(result: SearchResult) -> Figure:
    """Plots Recall@k, the fraction of queries with a relevant item in the top k, for k up to 1,000."""
    last = max(min(MAX_K, len(result.gallery)), 2)
    counts = np.bincount(result.first_ranks.cpu().clamp(max=last + 1).numpy(), minlength=last + 2)
    recalls = 100 * counts[1 : last + 1].cumsum() / len(result.first_ranks)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.step(np.arange(1, last + 1), recalls, where="post", color=BLUE)
    for k in (1, 10, 100, 1000):
        if k <= last:
            axes.plot(k, recalls[k - 1], "o", color=BLUE)
            side = "left" if k < MAX_K else "right"
            axes.annotate(f"{recalls[k - 1]:.1f}", (k, recalls[k - 1]), (0, -14), textcoords="offset points", ha=side)
    limits: dict[str, Any] = {"xlim": (0.9, 1.15 * last), "ylim": (max(recalls[0] - 10, 0), 102)}
    axes.set(xscale="log", xlabel="k", ylabel="Recall@k, %", **limits)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))  # plain numbers, not powers of ten
    axes.set_title(f"Recall@k over k, {len(result.first_ranks):,} queries")
    axes.grid(alpha=0.3)
    return figure


def draw_similarities(result: SearchResult, seed: int = 0) -> Figure:
    """Plots normalised histograms of query similarities to relevant and to irrelevant items.

    The overlap of the two histograms shows how much classes are confused.

    Args:
        result: the search.
        seed: seed for sampling at most 1,000 queries.
    """
    order = torch.randperm(len(result.queries), generator=torch.Generator().manual_seed(seed))[:MAX_QUERIES]
    edges: NDArray[np.float64] | None = None
    relevant_counts, irrelevant_counts = np.zeros(FINE_BINS), np.zeros(FINE_BINS)
    for part in torch.split(order.to(result.queries.device), 100):
        queries = result.queries[part]
        similarities = result.similarities(queries, result.gallery)
        is_relevant = result.is_relevant(queries, result.gallery.expand(len(queries), -1))
        is_self = queries[:, None] == result.gallery
        if edges is None:  # dot products are unbounded: use the observed range
            low, high = (-1.0, 1.0) if result.normalize else similarities.aminmax()
            edges = np.linspace(float(low), float(high), FINE_BINS + 1)
        for counts, mask in ((relevant_counts, is_relevant & ~is_self), (irrelevant_counts, ~is_relevant)):
            counts += np.histogram(similarities[mask].cpu().numpy().clip(edges[0], edges[-1]), edges)[0]
    assert edges is not None  # a search without queries raises an error
    return _draw_histograms(edges, relevant_counts, irrelevant_counts)


def _draw_histograms(
    edges: NDArray[np.float64], relevant: NDArray[np.float64], irrelevant: NDArray[np.float64]
) -> Figure:
    """Merges fine bins into wider ones over the non-empty range and plots densities."""
    non_empty = np.flatnonzero(relevant + irrelevant)
    width = -(-(non_empty[-1] + 1 - non_empty[0]) // BINS)
    starts = np.arange(non_empty[0], non_empty[-1] + 1, width)
    relevant, irrelevant = (np.add.reduceat(counts[: starts[-1] + width], starts) for counts in (relevant, irrelevant))
    edges = np.append(edges[starts], edges[min(starts[-1] + width, len(edges) - 1)])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    overlap = np.minimum(relevant / relevant.sum(), irrelevant / max(irrelevant.sum(), 1)).sum()
    for counts, name, colour, style in (
        (relevant, "same class", BLUE, "-"),
        (irrelevant, "other classes", ORANGE, "--"),
    ):
        density = counts / max(counts.sum(), 1) / np.diff(edges)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.25)
        label = f"{name}: {int(counts.sum()):,}"
        axes.stairs(density, edges, color=colour, linestyle=style, linewidth=1.5, label=label)
    axes.set(xlim=(edges[0], edges[-1]), xlabel="similarity", ylabel="density")
    axes.set_title(f"Pairs of a query and a gallery item; histogram overlap: {100 * overlap:.1f} %")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def draw_embedding_map(result: SearchResult, seed: int = 0, class_names: Sequence[str] | None = None) -> Figure:
    """Plots the embeddings of some classes on their first two principal components.

    Each class has a colour and a marker, and its label is drawn on the map; names are in a legend.

    Args:
        result: the search, with labels.
        seed: seed for sampling at most 12 classes, and at most 60 items of each.
        class_names: name of each label; None: the labels are shown.

    Raises:
        ValueError: if the search has no labels.
    """
    if result.labels is None:
        raise ValueError("draw_embedding_map needs class labels, but this search has none.")
    labels = result.labels.cpu().numpy()
    rng = np.random.default_rng(seed)
    class_labels, counts = np.unique(labels, return_counts=True)
    classes = rng.permutation(class_labels[counts > 1])[:MAX_CLASSES]
    items = [rng.permutation(np.flatnonzero(labels == label))[:MAX_ITEMS_PER_CLASS] for label in classes]
    figure = Figure(figsize=(7 if class_names is None else 9.5, 6), layout="constrained")
    axes = figure.subplots()
    for class_number, (label, points) in enumerate(zip(classes, _project_to_2d(result, items), strict=True)):
        colour = COLOURS[class_number % len(COLOURS)]
        marker = MARKERS[(class_number + class_number // len(COLOURS)) % len(MARKERS)]
        style: dict[str, Any] = {"s": 28, "alpha": 0.8, "edgecolor": "white", "linewidth": 0.4}
        if class_names is not None:
            name = shorten_name(class_names[label] if label < len(class_names) else str(label))
            style["label"] = f" {name}" if name.startswith("_") else name  # matplotlib omits names that start with "_"
        axes.scatter(points[:, 0], points[:, 1], color=colour, marker=marker, **style)
        if class_names is not None:
            continue
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
        x, y = np.median(points, axis=0)
        axes.annotate(f"{label}", (x, y), fontsize=8, ha="center", va="center", bbox=box)
    axes.set(xlabel="first principal component", ylabel="second principal component", aspect="equal")
    if class_names is not None:
        for text in figure.legend(loc="outside right upper", fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)  # a name may contain "$"
    with_labels = ", with their labels" if class_names is None else ""
    axes.set_title(f"Embeddings of {len(classes)} of {len(class_labels):,} classes{with_labels}")
    axes.grid(alpha=0.3)
    return figure


def _project_to_2d(result: SearchResult, items: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """Projects the items (n,) of each class to points (n, 2) by PCA."""
    pieces = [result.embeddings] if isinstance(result.embeddings, torch.Tensor) else list(result.embeddings)
    selected = torch.from_numpy(np.concatenate(items)).to(pieces[0].device)
    embeddings = torch.cat(pieces)[selected].double().cpu()
    embeddings = F.normalize(embeddings, dim=1) if result.normalize else embeddings
    centred = embeddings - embeddings.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    points = centred @ directions[:2].T
    points = F.pad(points, (0, 2 - points.shape[1]))  # embeddings of dimension 1 have one component only
    return np.split(points.numpy(), np.cumsum([len(part) for part in items])[:-1])
