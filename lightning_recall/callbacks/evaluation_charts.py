"""Draws what lies behind the scores: similarities, Recall@k over k, and the embeddings in the plane."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.callbacks.output import file_name, keeps_files, output_path, save_picture
from lightning_recall.callbacks.retrieval_evaluation import results_of
from lightning_recall.search.result import SearchResult

QUERIES = 1000  # whose similarities are drawn
FINE, BINS = 4000, 80  # bins that are counted in, and those drawn, about, over the part that holds anything
CLASSES, ITEMS = 12, 60  # on the map, and of each at most
BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by the colour-blind (Okabe and Ito)
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "^", "s", "v", "D", "P")  # a colour's second round has other markers


class EvaluationCharts(Callback):
    """After a test, draws `similarities.png`, `recall_over_k.png` and `embedding_map.png`.

    The first shows how similar queries are to images of their class and to others: what they share is what is confused.
    The second has Recall@k for every k. The third has the embeddings of some classes in the plane of their first two
    principal components. Goes beside a `RetrievalEvaluation`, whose search it shows; several test sets have pictures of
    their own. Loggers that take pictures get them.

    Args:
        seed: of the choice of queries and classes.

    Raises:
        ValueError: before a test without a `RetrievalEvaluation`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a test that could not be drawn, before it runs."""
        results_of(trainer, self)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        if not keeps_files(trainer):
            return
        for result in results_of(trainer, self):
            for chart in charts_of(result.search_result, self.seed):
                path = output_path(trainer, file_name(chart.name, result.name) + ".png")  # asks all processes
                if trainer.is_global_zero:
                    save_picture(trainer, chart.draw(), path, chart.title)


class Chart(NamedTuple):
    """A picture yet to be drawn; `name` is its file's."""

    name: str
    title: str
    draw: Callable[[], Figure]


def charts_of(searched: SearchResult, seed: int) -> list[Chart]:
    """The charts of a search; no map where labels do not tell classes."""
    charts = [
        Chart("recall_over_k", "Recall@k over k", partial(draw_recall, searched)),
        Chart("similarities", "Similarities of right and wrong pairs", partial(draw_similarities, searched, seed)),
    ]
    if searched.labels is not None:
        charts.append(Chart("embedding_map", "Embeddings in the plane", partial(draw_map, searched, seed)))
    return charts


def draw_similarities(searched: SearchResult, seed: int) -> Figure:
    """Two histograms, each of area 1: similarities of some queries to relevant items, and to all others."""
    order = torch.randperm(len(searched.queries), generator=torch.Generator().manual_seed(seed))[:QUERIES]
    edges: NDArray[np.float64] | None = None
    right, wrong = np.zeros(FINE), np.zeros(FINE)
    for part in torch.split(order.to(searched.queries.device), 100):
        queries = searched.queries[part]
        similarities = searched.similarities(queries, searched.gallery)
        relevant = searched.is_relevant(queries, searched.gallery.expand(len(queries), -1))
        own = queries[:, None] == searched.gallery
        if edges is None:  # dot products have no bounds but those seen
            low, high = (-1.0, 1.0) if searched.normalize else similarities.aminmax()
            edges = np.linspace(float(low), float(high), FINE + 1)
        for counts, chosen in ((right, relevant & ~own), (wrong, ~relevant)):
            counts += np.histogram(similarities[chosen].cpu().numpy().clip(edges[0], edges[-1]), edges)[0]
    assert edges is not None  # a search without a query is refused
    return two_histograms(edges, right, wrong)


def two_histograms(edges: NDArray[np.float64], right: NDArray[np.float64], wrong: NDArray[np.float64]) -> Figure:
    """Counts in fine bins, as densities in wider ones, from the first that holds anything to the last."""
    held = np.flatnonzero(right + wrong)
    width = -(-(held[-1] + 1 - held[0]) // BINS)
    starts = np.arange(held[0], held[-1] + 1, width)
    right, wrong = (np.add.reduceat(counts[: starts[-1] + width], starts) for counts in (right, wrong))
    edges = np.append(edges[starts], edges[min(starts[-1] + width, len(edges) - 1)])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    shared = np.minimum(right / right.sum(), wrong / max(wrong.sum(), 1)).sum()
    for counts, name, colour, style in ((right, "same class", BLUE, "-"), (wrong, "other classes", ORANGE, "--")):
        density = counts / max(counts.sum(), 1) / np.diff(edges)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(
            density, edges, color=colour, linestyle=style, linewidth=1.5, label=f"{name}: {int(counts.sum()):,}"
        )
    axes.set(xlim=(edges[0], edges[-1]), xlabel="similarity", ylabel="density")
    axes.set_title(f"VirtualPairs of query and gallery: the histograms share {100 * shared:.1f} % of their area")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def draw_recall(searched: SearchResult) -> Figure:
    """Recall@k, the share of queries with a right image among the first k, for every k to 1,000."""
    last = max(min(1000, len(searched.gallery)), 2)
    counts = np.bincount(searched.first_ranks.cpu().clamp(max=last + 1).numpy(), minlength=last + 2)
    recalls = 100 * counts[1 : last + 1].cumsum() / len(searched.first_ranks)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.step(np.arange(1, last + 1), recalls, where="post", color=BLUE)
    for k in (1, 10, 100, 1000):
        if k <= last:
            axes.plot(k, recalls[k - 1], "o", color=BLUE)
            side = "left" if k < 1000 else "right"
            axes.annotate(f"{recalls[k - 1]:.1f}", (k, recalls[k - 1]), (0, -14), textcoords="offset points", ha=side)
    axes.set(
        xscale="log", xlabel="k", ylabel="Recall@k, %", xlim=(0.9, 1.15 * last), ylim=(max(recalls[0] - 10, 0), 102)
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))  # 10, not 10 to the 1
    axes.set_title(f"Recall@k over k, {len(searched.first_ranks):,} queries")
    axes.grid(alpha=0.3)
    return figure


def draw_map(searched: SearchResult, seed: int) -> Figure:
    """Embeddings of some classes, each with a colour, a marker and its label, by their two principal components."""
    assert searched.labels is not None  # charts_of has seen to it
    labels = searched.labels.cpu().numpy()
    rng = np.random.default_rng(seed)
    names, counts = np.unique(labels, return_counts=True)
    classes = rng.permutation(names[counts > 1])[:CLASSES]
    rows = [rng.permutation(np.flatnonzero(labels == name))[:ITEMS] for name in classes]
    points = in_the_plane(searched, rows)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    for number, (name, part) in enumerate(zip(classes, points, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        axes.scatter(
            part[:, 0], part[:, 1], s=28, color=colour, marker=marker, alpha=0.8, edgecolor="white", linewidth=0.4
        )
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
        middle = np.median(part, axis=0)
        axes.annotate(f"{name}", (middle[0], middle[1]), fontsize=8, ha="center", va="center", bbox=box)
    axes.set(xlabel="first principal component", ylabel="second principal component", aspect="equal")
    axes.set_title(f"Embeddings of {len(classes)} of {len(names):,} classes, with their labels")
    axes.grid(alpha=0.3)
    return figure


def in_the_plane(searched: SearchResult, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """Points (n, 2) of the items of each class (n,)."""
    pieces = [searched.embeddings] if isinstance(searched.embeddings, torch.Tensor) else list(searched.embeddings)
    embeddings = torch.cat(pieces)[torch.from_numpy(np.concatenate(rows)).to(pieces[0].device)].double().cpu()
    embeddings = F.normalize(embeddings, dim=1) if searched.normalize else embeddings
    centred = embeddings - embeddings.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    points = (centred @ directions[:2].T).numpy()
    return np.split(
        F.pad(torch.from_numpy(points), (0, 2 - points.shape[1])).numpy(), np.cumsum([len(r) for r in rows])[:-1]
    )
