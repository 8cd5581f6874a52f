"""Draws what the model retrieves: test queries beside their nearest neighbours."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.callbacks.batches import describe, named_loaders
from lightning_recall.callbacks.index_checks import check_recorded
from lightning_recall.callbacks.index_recorder import REMEDY
from lightning_recall.callbacks.output import file_name, keeps_files, output_path, save_picture
from lightning_recall.callbacks.retrieval_evaluation import EvaluationResult, results_of
from lightning_recall.search.result import SearchResult

CELL, IMAGE, CAPTION = 0.95, 0.85, 0.32  # inches: of a cell's width, of an image's longer side, of the text above
BLACK = ("black", "solid")
RIGHT, WRONG = ("#1a9641", "solid"), ("#d7191c", (0, (1.5, 1)))  # style as well as colour, for the colour-blind

Choice = Literal["random", "worst", "best"]


class RetrievedImages(Callback):
    """After a test, draws queries, each with the most similar images of the test split: `retrieved_images.png`.

    Images of the query's class have a green, solid frame, others a red, dashed one; above each stands its cosine
    similarity, and above the query the rank of its first right image. The queries that found theirs last are drawn in
    `retrieved_images_worst.png`. Goes beside a `RetrievalEvaluation`, whose search it shows; several test sets have a
    picture each. Loggers that take pictures get them.

    Args:
        num_queries: rows of a picture, each of another class if there are enough.
        num_neighbors: nearest images in a row.
        choices: which queries: "random", "worst", "best", a picture each.
        seed: of the choice of queries.

    Raises:
        ValueError: for numbers below 1 or unknown choices, and before a test without a `RetrievalEvaluation` or whose
            images could not be looked up in the data set (`row_recorder`).
    """

    def __init__(
        self,
        num_queries: int = 10,
        num_neighbors: int = 10,
        choices: Sequence[Choice] = ("random", "worst"),
        seed: int = 0,
    ) -> None:
        if num_queries < 1 or num_neighbors < 1:
            raise ValueError(
                f"num_queries and num_neighbors must be at least 1, got {num_queries} and {num_neighbors}."
            )
        if not choices or not set(choices) <= {"random", "worst", "best"}:
            raise ValueError(f"choices must be some of random, worst and best, got {tuple(choices)}.")
        self.num_queries = num_queries
        self.num_neighbors = num_neighbors
        self.choices = tuple(choices)
        self.seed = seed

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a test that could not be drawn, before it runs."""
        results_of(trainer, self)
        check_images(trainer, self)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        if not keeps_files(trainer):
            return
        for result in results_of(trainer, self):
            for choice in self.choices:
                name = file_name("retrieved_images", "" if choice == "random" else choice, result.name)
                path = output_path(trainer, f"{name}.png")  # asks all processes
                if trainer.is_global_zero:
                    figure = self.draw(result, choice)
                    save_picture(trainer, figure, path, f"What the model retrieves, {choice} queries")

    def draw(self, result: EvaluationResult, choice: Choice) -> Figure:
        """One picture."""
        searched = result.search_result
        chosen = choose_queries(searched, self.num_queries, choice, self.seed)  # (q,)
        queries = searched.queries[chosen]
        similarities, neighbors = searched.nearest(queries, self.num_neighbors)  # (q, K)
        relevant = searched.is_relevant(queries, neighbors)
        pictures = pictures_of(result, {*queries.tolist(), *neighbors.ravel().tolist()})
        return draw_rows(pictures, queries, neighbors, similarities, relevant, searched.first_ranks[chosen])


def check_images(trainer: Trainer, callback: Callback) -> None:
    """Refuses a test of which the images could not be found again.

    Raises:
        ValueError: in that case.
    """
    check_recorded(trainer.test_dataloaders, f"{type(callback).__name__} looks its images up in the data set")
    for loader in named_loaders(trainer.test_dataloaders).values():
        if len(loader.dataset):
            image_of(loader.dataset, 0)


def choose_queries(searched: SearchResult, num_queries: int, choice: Choice, seed: int) -> Tensor:
    """Places (q,) in `searched.queries`, of different classes as far as there are any.

    Args:
        searched: what was found.
        num_queries: how many, at most.
        choice: "worst" and "best" go by the rank of the first right image; of equal ones, random ones are taken.
        seed: of what is random.
    """
    ranks = searched.first_ranks.cpu()
    order = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(seed))
    if choice != "random":
        order = order[ranks[order].argsort(descending=choice == "worst", stable=True)]
    if searched.labels is not None:
        labels = searched.labels.cpu()[searched.queries.cpu()][order].numpy()
        is_first = np.zeros(len(order), dtype=bool)
        is_first[np.unique(labels, return_index=True)[1]] = True
        order = torch.cat([order[is_first], order[~is_first]])
    return order[:num_queries].to(searched.queries.device)


def pictures_of(result: EvaluationResult, rows: set[int]) -> dict[int, NDArray[np.float64]]:
    """Images of some rows of what was searched."""
    if result.search_result.indices is None:
        raise ValueError(f"No picture of a test whose rows are not known: {REMEDY}.")
    numbers = result.search_result.indices.cpu()
    return {row: to_picture(image_of(result.dataset, int(numbers[row]))) for row in sorted(rows)}


def image_of(dataset: Any, row: int) -> Tensor:
    """Image (C, H, W) of an item (image, label).

    Raises:
        ValueError: if the item begins with something else.
    """
    item = dataset[row]
    image = item[0] if isinstance(item, Sequence) and len(item) else item
    if not (isinstance(image, Tensor) and image.ndim == 3):
        got = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else describe(image)
        raise ValueError(f"Pictures need items (image (C, H, W), label); item {row} of the data set begins with {got}.")
    return image


def to_picture(image: Tensor) -> NDArray[np.float64]:
    """Image (C, H, W), uint8 or floats of any range, as (H, W) or (H, W, 3) in [0, 1]."""
    values = image.numpy().astype(float)
    if image.dtype == torch.uint8:
        values /= 255
    elif values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / max(np.ptp(values), 1e-9)
    picture: NDArray[np.float64] = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
    return picture


def draw_rows(
    pictures: dict[int, NDArray[np.float64]],
    queries: Tensor,
    neighbors: Tensor,
    similarities: Tensor,
    relevant: Tensor,
    first_ranks: Tensor,
) -> Figure:
    """One row a query (q,), with its first rank (q,), then its neighbours (q, K), similarities and relevant (q, K)."""
    figure, axes = empty_figure(neighbors.shape[1] + 1, len(queries), head=0.6)
    for row, query in enumerate(queries.tolist()):
        show(axes, row, 0, pictures[query], f"query\nright at {int(first_ranks[row]):,}", BLACK, width=1)
        for column, item in enumerate(neighbors[row].tolist()):
            frame = RIGHT if relevant[row, column] else WRONG
            show(axes, row, column + 1, pictures[item], f"{similarities[row, column]:.2f}", frame, width=3)
    figure.suptitle(
        "Queries, with the rank of their first right image, and their nearest neighbours, with cosine similarity:\n"
        "green solid = right, red dashed = wrong",
        fontsize=10,
        y=1 - 0.1 / figure.get_figheight(),
    )
    return figure


def draw_neighbors(query: Tensor, found: Sequence[Tensor], similarities: Tensor) -> Figure:
    """One row: an image of your own, and what a search found for it, with the similarities.

    Args:
        query: image (C, H, W), uint8 or floats of any range.
        found: K images of the kind, the nearest first.
        similarities: (K,) of each.
    """
    figure, axes = empty_figure(len(found) + 1, 1)
    show(axes, 0, 0, to_picture(query), "query", BLACK, width=3)
    for column, (image, similarity) in enumerate(zip(found, similarities.tolist(), strict=True), 1):
        show(axes, 0, column, to_picture(image), f"{similarity:.2f}", ("grey", "solid"), width=1)
    return figure


def empty_figure(num_columns: int, num_rows: int, head: float = 0.0) -> tuple[Figure, Axes]:
    """A figure with one axes, in inches from its upper left corner, below `head` inches for a title.

    Axes for each image would take three times as long to draw.
    """
    width, height = num_columns * CELL + 0.1, num_rows * (CELL + CAPTION) + 0.1 + head
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height - head, -head), autoscale_on=False)
    axes.axis("off")
    return figure, axes


def show(
    axes: Axes, row: int, column: int, picture: NDArray[np.float64], title: str, frame: tuple[str, Any], width: float
) -> None:
    """One image in its cell, with a title and a frame of a colour and a line style."""
    left, top = column * CELL + 0.1, row * (CELL + CAPTION) + CAPTION
    high, wide = (IMAGE * side / max(picture.shape[:2]) for side in picture.shape[:2])
    x, y = left + (IMAGE - wide) / 2, top + (IMAGE - high) / 2
    extent = (x, x + wide, y + high, y)
    axes.imshow(picture, extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    frame_style = {"edgecolor": frame[0], "linestyle": frame[1], "linewidth": width, "capstyle": "butt"}
    axes.add_patch(Rectangle((x, y), wide, high, fill=False, **frame_style))
    axes.text(left + IMAGE / 2, y - 0.05, title, fontsize=8, ha="center", va="bottom")
