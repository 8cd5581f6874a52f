"""Writes an HTML report of a test: scores, charts and queries."""

import base64
import io
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.callbacks.output import output_path, print_path, unused_paths, writes_files
from lightning_recall.callbacks.retrieval_evaluation import EvaluationResult, evaluation_results
from lightning_recall.callbacks.retrieved_images import check_images, pictures_of
from lightning_recall.checks import check_integer
from lightning_recall.plots.charts import charts_of
from lightning_recall.plots.retrieved_images import Choice, retrieve

THUMBNAIL = 96  # pixels, the longer side
DPI = 90  # of charts


class EvaluationReport(Callback):
    """After a test, writes `report.html`: scores, charts, and queries with what they retrieved, in one file.

    The page needs no network and no other file, so it is easy to share. The viewer can switch between the worst and
    random queries, and filter by label and by rank. Requires a `RetrievalEvaluation`.

    Args:
        num_queries: number of worst and of random queries per test set.
        num_neighbors: neighbours shown per query.
        seed: seed for the random queries.

    Raises:
        ValueError: for numbers below 1. At test start, if there is no `RetrievalEvaluation`, the data set indices of
            the images are unknown (see `index_recorder`), or the data set does not return images.
    """

    def __init__(self, num_queries: int = 60, num_neighbors: int = 8, seed: int = 0) -> None:
        check_integer("num_queries", num_queries, 1)
        check_integer("num_neighbors", num_neighbors, 1)
        self.num_queries = num_queries
        self.num_neighbors = num_neighbors
        self.seed = seed

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks at test start that the report can be made."""
        evaluation_results(trainer, self)
        check_images(trainer, self)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the page."""
        if not writes_files(trainer):
            return
        path = output_path(trainer, "report.html")  # must be called on all processes
        results = evaluation_results(trainer, self)
        if trainer.is_global_zero and results:
            details = [f"Model: {type(pl_module).__name__}"]
            if trainer.ckpt_path:
                details.append(f"Checkpoint: {trainer.ckpt_path}")
            (path,) = unused_paths(path)
            path.write_text(self.page(results, details), encoding="utf-8")
            print_path("HTML report", path)

    def page(self, results: list[EvaluationResult], details: list[str]) -> str:
        """The page as text."""
        data: dict[str, Any] = {"images": {}, "queries": []}
        for number, result in enumerate(results):
            for choice in ("worst", "random"):
                self.add_queries(data, result, number, choice)
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string((files(__package__) / "report.html").read_text(encoding="utf-8"))
        score_names = dict.fromkeys(name for result in results for name in result.search_result.means())
        return template.render(
            details=details,
            score_names=list(score_names),
            test_sets=[self.test_set(result) for result in results],
            data=data,
        )

    def test_set(self, result: EvaluationResult) -> dict[str, Any]:
        """What the page shows of a test set, besides the queries."""
        search_result = result.search_result
        return {
            "name": result.name,
            "scores": {name: 100 * float(mean) for name, mean in search_result.means().items()},
            "num_queries": len(search_result.queries),
            "num_gallery": len(search_result.gallery),
            "charts": [(chart.title, to_data_url(chart.draw())) for chart in charts_of(search_result, self.seed)],
        }

    def add_queries(self, data: dict[str, Any], result: EvaluationResult, number: int, choice: Choice) -> None:
        """Adds some queries of a test set, and the images that they need."""
        labels = result.search_result.labels
        retrieved = retrieve(result.search_result, self.num_queries, self.num_neighbors, choice, self.seed)
        missing = [item for item in retrieved.items() if f"{number}/{item}" not in data["images"]]
        for item, picture in pictures_of(result, missing).items():
            data["images"][f"{number}/{item}"] = to_data_url(thumbnail(picture))
        for row, query in enumerate(retrieved.queries.tolist()):
            data["queries"].append(
                {
                    "set": number,
                    "choice": choice,
                    "image": query,
                    "label": "" if labels is None else str(int(labels[query])),
                    "rank": int(retrieved.first_ranks[row]),
                    "neighbors": retrieved.neighbors[row].tolist(),
                    "similarities": [round(value, 3) for value in retrieved.similarities[row].tolist()],
                    "relevant": retrieved.is_relevant[row].tolist(),
                }
            )


def thumbnail(picture: NDArray[np.float64]) -> Image.Image:
    """A small copy of a picture (H, W) or (H, W, 3) in [0, 1]."""
    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def to_data_url(picture: Figure | Image.Image) -> str:
    """Encodes an image as a data URL."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=DPI)
    else:
        picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
