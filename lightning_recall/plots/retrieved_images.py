"""Draws what a search retrieves: query images beside their nearest neighbours."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.plots.labels import fit_lines
from lightning_recall.search.result import SearchResult

IMAGE, LARGE_IMAGE = 0.85, 1.45  # longer image side in inches: 94 and 160 pixels in files
LARGE = 96  # pixels, longer side from which pictures are drawn large
GAP, CAPTION, NAME = 0.1, 0.32, 0.3  # between images, text above and name below an image, in inches
NAME_SIZE, LARGE_NAME_SIZE = 6.5, 8  # points
BLACK = ("black", "solid")
RELEVANT, IRRELEVANT = ("#1a9641", "solid"), ("#d7191c", (0, (1.5, 1)))  # colour-blind safe: the line style differs too

Choice = Literal["random", "worst", "best"]
"""which queries are shown: random ones, or those whose first relevant item has the largest or the smallest rank"""


class RetrievedQueries(NamedTuple):
    """Some queries of a search and the K nearest gallery items of each, nearest first.

    queries: (q,) indices into the embeddings of the search.
    first_ranks: (q,) rank, starting at 1, of each query's first relevant item.
    neighbors: (q, K) indices into the embeddings of the search.
    similarities: (q, K).
    is_relevant: (q, K) bool.
    """

    queries: Tensor
    first_ranks: Tensor
    neighbors: Tensor
    similarities: Tensor
    is_relevant: Tensor

    def items(self) -> set[int]:
        """All queries and neighbours."""
        return {*self.queries.tolist(), *self.neighbors.ravel().tolist()}


def retrieve(result: SearchResult, num_queries: int, num_neighbors: int, choice: Choice, seed: int) -> RetrievedQueries:
    """Selects some queries of a search, and finds their nearest neighbours."""
    selected = choose_queries(result, num_queries, choice, seed)  # (q,)
    queries = result.queries[selected]
    similarities, neighbors = result.nearest(queries, num_neighbors)  # (q, K)
    is_relevant = result.is_relevant(queries, neighbors)
    return RetrievedQueries(queries, result.first_ranks[selected], neighbors, similarities, is_relevant)


def choose_queries(result: SearchResult, num_queries: int, choice: Choice, seed: int) -> Tensor:
    """Indices (q,) into `result.queries`, from as many different classes as possible.

    Args:
        result: the search.
        num_queries: maximum number of queries.
        choice: "worst" and "best" sort by the rank of the first relevant item; ties are broken at random.
        seed: random seed.
    """
    ranks = result.first_ranks.cpu()
    order = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(seed))
    if choice != "random":
        order = order[ranks[order].argsort(descending=choice == "worst", stable=True)]
    if result.labels is not None:
        labels = result.labels.cpu()[result.queries.cpu()][order].numpy()
        is_first_of_class = np.zeros(len(order), dtype=bool)
        is_first_of_class[np.unique(labels, return_index=True)[1]] = True
        order = torch.cat([order[is_first_of_class], order[~is_first_of_class]])
    return order[:num_queries].to(result.queries.device)


def load_pictures(
    result: SearchResult, load_image: Callable[[int], Tensor], items: Iterable[int]
) -> dict[int, NDArray[np.float64]]:
    """Loads the images of some items of a search, converted by `to_picture`.

    Args:
        result: the search, with indices.
        load_image: index in the data set -> image (C, H, W).
        items: items of the search.

    Raises:
        ValueError: if the search has no indices.
    """
    if result.indices is None:
        raise ValueError(
            "Images are loaded by data set index, but this search has no data set indices: pass indices to the "
            "metric's update()."
        )
    indices = result.indices.cpu()
    return {item: to_picture(load_image(int(indices[item]))) for item in sorted(items)}


def to_picture(image: Tensor) -> NDArray[np.float64]:
    """Image (C, H, W), uint8 or floats of any range, as (H, W) or (H, W, 3) in [0, 1]."""
    values = image.numpy().astype(float)
    if image.dtype == torch.uint8:
        values /= 255
    elif values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / max(np.ptp(values), 1e-9)
    picture: NDArray[np.float64] = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
    return picture


def draw_retrieved_images(
    result: SearchResult,
    load_image: Callable[[int], Tensor],
    num_queries: int = 10,
    num_neighbors: int = 10,
    choice: Choice = "random",
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws queries, one per row, from different classes if there are enough, with their nearest neighbours.

    Args:
        result: the search, with indices.
        load_image: index in the data set -> image (C, H, W), uint8 or floats of any range.
        num_queries: number of rows.
        num_neighbors: neighbours per row.
        choice: "random" queries; "worst" or "best": those whose first relevant item has the largest or smallest rank.
        seed: seed for sampling queries.
        class_names: name of each label, drawn below each image; None: no names.

    Raises:
        ValueError: if the search has no indices.
    """
    retrieved = retrieve(result, num_queries, num_neighbors, choice, seed)
    names = None
    if class_names is not None and result.labels is not None:
        labels = result.labels.cpu()
        names = {item: class_names[int(labels[item])] for item in retrieved.items()}
    return draw_queries(load_pictures(result, load_image, retrieved.items()), retrieved, names)


def draw_queries(
    pictures: Mapping[int, NDArray[np.float64]], retrieved: RetrievedQueries, names: Mapping[int, str] | None = None
) -> Figure:
    """Draws one row per query: the query, then its K neighbours.

    Args:
        pictures: item -> picture (H, W) or (H, W, 3).
        retrieved: the queries and their neighbours.
        names: item -> class name, drawn below its picture, in red if it is not the class of the query.
    """
    num_queries, num_neighbors = retrieved.neighbors.shape
    grid = Grid(LARGE_IMAGE if longest_side(pictures.values()) >= LARGE else IMAGE, NAME if names else 0.0)
    figure, axes = empty_figure(grid, num_neighbors + 1, num_queries, head=0.6)
    names = names or {}
    for row, query in enumerate(retrieved.queries.tolist()):
        caption = f"first relevant\nat rank {int(retrieved.first_ranks[row]):,}"
        show_picture(axes, grid, (row, 0), pictures[query], (caption, names.get(query, "")), BLACK, line_width=1)
        for column, item in enumerate(retrieved.neighbors[row].tolist()):
            frame = RELEVANT if retrieved.is_relevant[row, column] else IRRELEVANT
            caption = f"{retrieved.similarities[row, column]:.2f}"
            texts = caption, names.get(item, "")
            show_picture(axes, grid, (row, column + 1), pictures[item], texts, frame, line_width=3)
    figure.suptitle(
        "Queries, with the rank of their first relevant item, and their nearest neighbours, with similarity:\n"
        "green solid = relevant, red dashed = not relevant",
        fontsize=10,
        y=1 - 0.1 / figure.get_figheight(),
    )
    return figure


def draw_neighbors(query: Tensor, neighbors: Sequence[Tensor], similarities: Tensor) -> Figure:
    """Draws a query image and its nearest neighbours in one row.

    Args:
        query: image (C, H, W), uint8 or floats of any range.
        neighbors: K images in the same format, nearest first.
        similarities: (K,) similarity of each neighbour.
    """
    pictures = [to_picture(image) for image in (query, *neighbors)]
    grid = Grid(LARGE_IMAGE if longest_side(pictures) >= LARGE else IMAGE, 0.0)
    figure, axes = empty_figure(grid, len(pictures), 1)
    show_picture(axes, grid, (0, 0), pictures[0], ("query", ""), BLACK, line_width=3)
    for column, (picture, similarity) in enumerate(zip(pictures[1:], similarities.tolist(), strict=True), 1):
        show_picture(axes, grid, (0, column), picture, (f"{similarity:.2f}", ""), ("grey", "solid"), line_width=1)
    return figure


class Grid(NamedTuple):
    """Sizes of the cells of a figure, in inches.

    image: longer side of an image.
    name: height of the space for a name below an image.
    """

    image: float
    name: float


def longest_side(pictures: Iterable[NDArray[np.float64]]) -> int:
    """The longest side of all pictures (H, W) or (H, W, 3), in pixels."""
    return max(int(side) for picture in pictures for side in picture.shape[:2])


def empty_figure(grid: Grid, num_columns: int, num_rows: int, head: float = 0.0) -> tuple[Figure, Axes]:
    """Creates a figure with a single Axes in inches, with the origin at the upper left.

    One Axes per image would take three times as long to draw.

    Args:
        grid: sizes of the cells.
        num_columns: number of cells in a row.
        num_rows: number of rows.
        head: height of the space for a title above the origin, in inches.
    """
    width = num_columns * (grid.image + GAP) + GAP
    height = num_rows * (grid.image + GAP + CAPTION + grid.name) + GAP + head
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height - head, -head), autoscale_on=False)
    axes.axis("off")
    return figure, axes


def show_picture(
    axes: Axes,
    grid: Grid,
    position: tuple[int, int],
    picture: NDArray[np.float64],
    texts: tuple[str, str],
    frame: tuple[str, Any],
    line_width: float,
) -> None:
    """Draws one image in its cell, with a frame and texts above and below.

    Args:
        axes: where to draw.
        grid: sizes of the cells.
        position: row and column of the cell.
        picture: image (H, W) or (H, W, 3).
        texts: text above the image, and the name below it, in the colour of the frame.
        frame: colour and line style of the frame.
        line_width: line width of the frame.
    """
    row, column = position
    left, top = column * (grid.image + GAP) + GAP, row * (grid.image + GAP + CAPTION + grid.name) + CAPTION
    height, width = (grid.image * side / max(picture.shape[:2]) for side in picture.shape[:2])
    x, y = left + (grid.image - width) / 2, top + (grid.image - height) / 2
    extent = (x, x + width, y + height, y)
    axes.imshow(picture, extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    frame_style = {"edgecolor": frame[0], "linestyle": frame[1], "linewidth": line_width, "capstyle": "butt"}
    axes.add_patch(Rectangle((x, y), width, height, fill=False, **frame_style))
    above, below = texts
    axes.text(left + grid.image / 2, y - 0.05, above, fontsize=8, ha="center", va="bottom")
    if below:
        size = NAME_SIZE if grid.image == IMAGE else LARGE_NAME_SIZE
        name = fit_lines(below, grid.image, size)
        style: dict[str, Any] = {"fontsize": size, "color": frame[0], "ha": "center", "va": "top"}
        axes.text(left + grid.image / 2, y + height + 0.04, name, linespacing=1.1, parse_math=False, **style)
