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
from lightning_recall.callbacks.item_names import class_names_of, item_classes, item_files
from lightning_recall.callbacks.output import output_path, print_path, unused_paths, writes_files
from lightning_recall.callbacks.retrieval_evaluation import EvaluationResult, evaluation_results
from lightning_recall.callbacks.retrieved_images import check_images, pictures_of
from lightning_recall.callbacks.score_rows import interval_notes, interval_text
from lightning_recall.checks import check_integer
from lightning_recall.plots.charts import charts_of
from lightning_recall.plots.retrieved_images import Choice, retrieve

SIDES = (224, 192, 160, 128, 96)  # pixels, possible longer sides of thumbnails
MAX_SIDE, MIN_SIDE = SIDES[0], SIDES[-1]
MAX_BYTES = 8_000_000  # of all thumbnails
SAMPLED = 24  # thumbnails per test set whose size is measured
QUALITY = 85  # of JPEG
DPI = 90  # of charts


class EvaluationReport(Callback):
    """After a test, writes `report.html`: scores, charts, and queries with what they retrieved, in one file.

    The page needs no network and no other file, so it is easy to share. The viewer can switch between the worst and
    random queries, and filter by class and by rank. Class names and file names are shown if the data set has
    `class_names` and `paths`. Requires a `RetrievalEvaluation`.

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
        data: dict[str, Any] = {"items": {}, "images": {}, "queries": [], "side": MIN_SIDE}
        for number, result in enumerate(results):
            for choice in ("worst", "random"):
                self.add_queries(data, result, number, choice)
        self.add_images(data, results)
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string((files(__package__) / "report.html").read_text(encoding="utf-8"))
        score_names = dict.fromkeys(name for result in results for name in result.search_result.means())
        return template.render(
            details=details,
            score_names=list(score_names),
            test_sets=[self.test_set(result) for result in results],
            interval_notes=interval_notes({result.name: result.intervals for result in results}),
            has_names=any(item["class"] or item["file"] for item in data["items"].values()),
            data=data,
        )

    def test_set(self, result: EvaluationResult) -> dict[str, Any]:
        """What the page shows of a test set, besides the queries."""
        search_result = result.search_result
        charts = charts_of(search_result, self.seed, class_names_of(result.dataset))
        return {
            "name": result.name,
            "scores": {name: 100 * float(mean) for name, mean in search_result.means().items()},
            "intervals": {name: interval_text(interval, digits=2) for name, interval in result.intervals.items()},
            "num_queries": len(search_result.queries),
            "num_gallery": len(search_result.gallery),
            "charts": [(chart.title, to_data_url(chart.draw())) for chart in charts],
        }

    def add_queries(self, data: dict[str, Any], result: EvaluationResult, number: int, choice: Choice) -> None:
        """Adds some queries of a test set."""
        labels = result.search_result.labels
        retrieved = retrieve(result.search_result, self.num_queries, self.num_neighbors, choice, self.seed)
        items = sorted(retrieved.items())
        classes = item_classes(result.search_result, result.dataset, items)
        files_of_items = item_files(result.search_result, result.dataset, items)
        for item in items:
            label = "" if labels is None else str(int(labels[item]))
            data["items"][f"{number}/{item}"] = {
                "label": label,
                "class": classes.get(item, ""),
                "file": files_of_items.get(item, ""),
            }
        for row, query in enumerate(retrieved.queries.tolist()):
            data["queries"].append(
                {
                    "set": number,
                    "choice": choice,
                    "image": query,
                    "label": data["items"][f"{number}/{query}"]["label"],
                    "rank": int(retrieved.first_ranks[row]),
                    "neighbors": retrieved.neighbors[row].tolist(),
                    "similarities": [round(value, 3) for value in retrieved.similarities[row].tolist()],
                    "relevant": retrieved.is_relevant[row].tolist(),
                }
            )

    def add_images(self, data: dict[str, Any], results: list[EvaluationResult]) -> None:
        """Adds the images of the queries and of what they retrieve, as large as the size of the page allows."""
        keys = [tuple(map(int, key.split("/"))) for key in data["items"]]
        side = MAX_SIDE
        for number, result in enumerate(results):
            items = [item for set_number, item in keys if set_number == number]
            sample = items[:: max(len(items) // SAMPLED, 1)]
            side = min(side, thumbnail_side([*pictures_of(result, sample).values()], len(keys)))
        for number, item in keys:
            (picture,) = pictures_of(results[number], [item]).values()
            image = thumbnail(picture, side)
            data["images"][f"{number}/{item}"] = to_data_url(image)
            data["side"] = max(data["side"], *image.size)


def thumbnail_side(pictures: list[NDArray[np.float64]], number: int) -> int:
    """The longer side of thumbnails, in pixels, so that `number` of them stay within `MAX_BYTES`.

    Args:
        pictures: a sample of the pictures, (H, W) or (H, W, 3) in [0, 1].
        number: number of thumbnails on the page.
    """
    for side in SIDES:
        sizes = [len(to_data_url(thumbnail(picture, side))) for picture in pictures]
        if number * sum(sizes) / len(sizes) <= MAX_BYTES:
            return side
    return SIDES[-1]


def thumbnail(picture: NDArray[np.float64], side: int) -> Image.Image:
    """A copy of a picture (H, W) or (H, W, 3) in [0, 1] whose longer side is at most `side`."""
    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def to_data_url(picture: Figure | Image.Image) -> str:
    """Encodes a picture as a data URL: a figure as PNG, an image as PNG or JPEG, whichever is smaller."""
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=DPI)
        return data_url("png", buffer.getvalue())
    return min((data_url(kind, encode(picture, kind)) for kind in ("png", "jpeg")), key=len)


def encode(image: Image.Image, kind: str) -> bytes:
    """The file of an image, PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": QUALITY} if kind == "jpeg" else {}))
    return buffer.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """An image file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
