"""Draws what the model retrieves: test queries beside their nearest neighbours."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_recall.callbacks.batches import UNREADABLE, embeddings_of_batch, loader_at, roles, rows_in_order
from lightning_recall.callbacks.output import output_path, say_where

RIGHT, WRONG = ("#1a9641", "solid"), ("#d7191c", (0, (1.5, 1)))  # style as well as colour, for the colour-blind


class RetrievedImages(Callback):
    """After a test, writes `retrieved_images.png`: random queries, each with the most similar images of the test split.

    Images of the query's class have a green, solid frame, others a red, dashed one; above each stands its cosine
    similarity. Works with any module that `RetrievalEvaluation` scores, on the first test dataloader; with several
    processes it shows the images of process 0.

    Args:
        num_queries: rows of the picture, each of another class if there are enough.
        num_neighbors: nearest images in a row.
        seed: of the choice of queries.

    Raises:
        ValueError: for numbers below 1, and before a test whose dataloader shuffles or streams.
    """

    def __init__(self, num_queries: int = 10, num_neighbors: int = 10, seed: int = 0) -> None:
        if num_queries < 1 or num_neighbors < 1:
            raise ValueError(
                f"num_queries and num_neighbors must be at least 1, got {num_queries} and {num_neighbors}."
            )
        self.num_queries = num_queries
        self.num_neighbors = num_neighbors
        self.seed = seed
        self.embeddings: list[Tensor] = []
        self.labels: list[Tensor] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last test; refuses a dataloader whose images could not be found again."""
        self.embeddings, self.labels = [], []
        if rows_in_order(loader_at(trainer.test_dataloaders, 0)) is None:
            raise ValueError(
                "RetrievedImages looks its images up in the data set: the test dataloader must go through a map-style "
                "data set in order (shuffle=False)."
            )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes in a batch of the first dataloader."""
        if dataloader_idx == 0:
            self.embeddings.append(embeddings_of_batch(trainer, pl_module, outputs, batch).detach().float().cpu())
            self.labels.append(batch[1].cpu())

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches for the neighbours of the queries and draws them."""
        path = output_path(trainer, "retrieved_images.png")  # asks all processes
        if not trainer.is_global_zero:
            return
        embeddings, labels = F.normalize(torch.cat(self.embeddings), dim=1), torch.cat(self.labels)
        self.embeddings, self.labels = [], []
        loader = loader_at(trainer.test_dataloaders, 0)
        rows = rows_in_order(loader)
        assert rows is not None  # on_test_epoch_start has seen to it
        told = roles(loader, torch.tensor(rows[: len(labels)]))
        readable = labels != UNREADABLE
        is_query, is_gallery = (told.get(name, readable) & readable for name in ("is_query", "is_gallery"))
        truth = getattr(loader.dataset, "ground_truth", None)
        if truth is not None:  # it tells what is right, and labels do not: every query may be shown
            order = torch.randperm(int(is_query.sum()), generator=torch.Generator().manual_seed(self.seed))
            queries = is_query.nonzero().squeeze(1)[order[: self.num_queries]]
        else:
            queries = choose_queries(labels, is_query, is_gallery, self.num_queries, self.seed)
        similarities = embeddings[queries] @ embeddings.T  # (Q, N)
        similarities.scatter_(1, queries[:, None], -torch.inf)
        similarities[:, ~is_gallery] = -torch.inf
        top = similarities.topk(min(self.num_neighbors, max(int(is_gallery.sum()) - 1, 1)))  # (Q, K)
        pictures = {
            i: to_picture(loader.dataset[rows[i]][0]) for i in {*queries.tolist(), *top.indices.ravel().tolist()}
        }
        relevant = labels[top.indices] == labels[queries, None]  # (Q, K)
        if truth is not None:
            right = [{*truth[rows[query]][0], *truth[rows[query]][1]} for query in queries.tolist()]  # easy and hard
            relevant = torch.tensor(
                [
                    [rows[i] - len(truth) in ok for i in line]
                    for line, ok in zip(top.indices.tolist(), right, strict=True)
                ]
            )
        figure = draw_rows(pictures, queries, top.indices, top.values, relevant)
        figure.savefig(path, dpi=110)
        say_where("What the model retrieves", path)


def choose_queries(labels: Tensor, is_query: Tensor, is_gallery: Tensor, num_queries: int, seed: int) -> Tensor:
    """Rows of random queries, of different classes as far as there are any, among those that have a positive to find.

    Args:
        labels: (N,).
        is_query: (N,) bool, which rows may be chosen.
        is_gallery: (N,) bool, which rows are searched.
        num_queries: how many, at most.
        seed: of the choice.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).numpy()
    asks, searched = is_query.numpy()[order], is_gallery.numpy()[order]
    _, inverse = np.unique(labels.numpy()[order], return_inverse=True)
    others = np.bincount(inverse, weights=searched)[inverse] - searched  # (N,) that each would have to find
    able = np.flatnonzero(asks & (others > 0))
    one_each = np.sort(able[np.unique(inverse[able], return_index=True)[1]])
    rest = np.setdiff1d(able, one_each)
    return torch.from_numpy(order[np.concatenate([one_each, rest])[:num_queries]])


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
    pictures: dict[int, NDArray[np.float64]], queries: Tensor, neighbors: Tensor, similarities: Tensor, relevant: Tensor
) -> Figure:
    """One row a query (Q,): the query, then its neighbours (Q, K), with similarities (Q, K) and relevant (Q, K)."""
    num_rows, num_columns = len(queries), neighbors.shape[1] + 1
    figure = Figure(figsize=(num_columns * 0.95 + 0.3, num_rows * 1.12 + 0.5), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for row in range(num_rows):
        show(axes[row, 0], pictures[int(queries[row])], "query", ("black", "solid"), width=1)
        for column, item in enumerate(neighbors[row].tolist()):
            frame = RIGHT if relevant[row, column] else WRONG
            show(axes[row, column + 1], pictures[item], f"{similarities[row, column]:.2f}", frame, width=3)
    figure.suptitle(
        "Queries and their nearest neighbours, with cosine similarity: green solid = right, red dashed = wrong"
    )
    return figure


def show(axes: Axes, picture: NDArray[np.float64], title: str, frame: tuple[str, Any], width: float) -> None:
    """One image with a title and a frame of a colour and a line style."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=frame[0], linestyle=frame[1], linewidth=width, capstyle="butt")
