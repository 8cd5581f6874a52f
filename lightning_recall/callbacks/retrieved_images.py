"""Writes pictures of what the model retrieves: test queries beside their nearest neighbours."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.batch import type_and_shape
from lightning_recall.callbacks.dataloaders import named_loaders
from lightning_recall.callbacks.index_checks import check_recorded
from lightning_recall.callbacks.index_recorder import HINT
from lightning_recall.callbacks.item_names import item_classes
from lightning_recall.callbacks.output import file_name, output_path, save_picture, writes_files
from lightning_recall.callbacks.retrieval_evaluation import EvaluationResult, evaluation_results
from lightning_recall.checks import check_integer
from lightning_recall.plots.retrieved_images import Choice, draw_queries, load_pictures, retrieve


class RetrievedImages(Callback):
    """After a test, draws queries, each with the most similar images of the test split: `retrieved_images.png`.

    Images of the query's class have a green, solid frame, others a red, dashed one. The similarity is shown above each
    image, the rank of the first relevant item above the query, and the class name below each image, if the data set has
    `class_names`. The queries whose first relevant item has the
    largest rank are in `retrieved_images_worst.png`. Requires a `RetrievalEvaluation`. With several test sets, one plot
    per set is written. The plots are also sent to loggers that support images.

    Args:
        num_queries: queries per plot, from different classes if there are enough.
        num_neighbors: neighbours shown per query.
        choices: which queries: "random", "worst", "best"; one plot for each choice.
        seed: seed for sampling queries.

    Raises:
        ValueError: for numbers below 1 or unknown choices. At test start, if there is no `RetrievalEvaluation`, the
            data set indices of the images are unknown (see `index_recorder`), or the data set does not return images.
    """

    def __init__(
        self,
        num_queries: int = 10,
        num_neighbors: int = 10,
        choices: Sequence[Choice] = ("random", "worst"),
        seed: int = 0,
    ) -> None:
        check_integer("num_queries", num_queries, 1)
        check_integer("num_neighbors", num_neighbors, 1)
        if not choices or not set(choices) <= {"random", "worst", "best"}:
            raise ValueError(f"choices must be some of random, worst and best, got {tuple(choices)}.")
        self.num_queries = num_queries
        self.num_neighbors = num_neighbors
        self.choices = tuple(choices)
        self.seed = seed

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks at test start that the images can be drawn."""
        evaluation_results(trainer, self)
        check_images(trainer, self)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the pictures."""
        if not writes_files(trainer):
            return
        for result in evaluation_results(trainer, self):
            for choice in self.choices:
                name = file_name("retrieved_images", "" if choice == "random" else choice, result.name)
                path = output_path(trainer, f"{name}.png")  # must be called on all processes
                if trainer.is_global_zero:
                    save_picture(trainer, self.draw(result, choice), path, f"Retrieved images, {choice} queries")

    def draw(self, result: EvaluationResult, choice: Choice) -> Figure:
        """Draws one figure."""
        retrieved = retrieve(result.search_result, self.num_queries, self.num_neighbors, choice, self.seed)
        names = item_classes(result.search_result, result.dataset, retrieved.items())
        return draw_queries(pictures_of(result, retrieved.items()), retrieved, names)


def check_images(trainer: Trainer, callback: Callback) -> None:
    """Raises ValueError if the images of the test cannot be loaded by data set index."""
    check_recorded(trainer.test_dataloaders, f"{type(callback).__name__} loads images by data set index")
    for loader in named_loaders(trainer.test_dataloaders).values():
        if len(loader.dataset):
            image_of(loader.dataset, 0)


def pictures_of(result: EvaluationResult, items: Iterable[int]) -> dict[int, NDArray[np.float64]]:
    """Loads images from the data set; `items` are indices into the embeddings of the search."""
    if result.search_result.indices is None:
        raise ValueError(f"Cannot draw images: the data set indices of the batches are unknown: {HINT}.")
    return load_pictures(result.search_result, partial(image_of, result.dataset), items)


def image_of(dataset: Any, index: int) -> Tensor:
    """Image (C, H, W) of an item (image, label).

    Raises:
        ValueError: if the first element of the item is not an image.
    """
    item = dataset[index]
    image = item[0] if isinstance(item, Sequence) and len(item) else item
    if not (isinstance(image, Tensor) and image.ndim == 3):
        raise ValueError(
            f"The data set must return (image (C, H, W), label); the first element of item {index} is "
            f"{type_and_shape(image)}."
        )
    return image
