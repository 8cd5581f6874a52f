"""One page that shows a test: scores, charts, and queries to look through."""

import base64
import html
import io
import json
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.callbacks.evaluation_charts import charts_of
from lightning_recall.callbacks.output import free_paths, keeps_files, output_path, print_path
from lightning_recall.callbacks.retrieval_evaluation import EvaluationResult, results_of
from lightning_recall.callbacks.retrieved_images import Choice, check_images, choose_queries, pictures_of

THUMBNAIL = 96  # pixels, the longer side


class EvaluationReport(Callback):
    """After a test, writes `report.html`: scores, charts, and queries with what they retrieved, in one file.

    The page needs no network and no other file, so that it can be sent around. Queries can be chosen (those that found
    their first right image last, or random ones) and filtered by label and by rank. Goes beside a
    `RetrievalEvaluation`, whose search it shows.

    Args:
        num_queries: of the worst, and as many random ones, for each test set.
        num_neighbors: nearest images of each.
        seed: of what is random.

    Raises:
        ValueError: for numbers below 1, and before a test without a `RetrievalEvaluation` or whose images could not be
            looked up in the data set (`row_recorder`).
    """

    def __init__(self, num_queries: int = 60, num_neighbors: int = 8, seed: int = 0) -> None:
        if num_queries < 1 or num_neighbors < 1:
            raise ValueError(
                f"num_queries and num_neighbors must be at least 1, got {num_queries} and {num_neighbors}."
            )
        self.num_queries = num_queries
        self.num_neighbors = num_neighbors
        self.seed = seed

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a test that could not be shown, before it runs."""
        results_of(trainer, self)
        check_images(trainer, self)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the page."""
        if not keeps_files(trainer):
            return
        path = output_path(trainer, "report.html")  # asks all processes
        results = results_of(trainer, self)
        if trainer.is_global_zero and results:
            details = [f"Model: {type(pl_module).__name__}"]
            if trainer.ckpt_path:
                details.append(f"Checkpoint: {trainer.ckpt_path}")
            (path,) = free_paths(path)
            path.write_text(self.page(results, details), encoding="utf-8")
            print_path("Report, to be opened in a browser", path)

    def page(self, results: list[EvaluationResult], details: list[str]) -> str:
        """The page as text."""
        shown: dict[str, Any] = {"images": {}, "queries": []}
        for number, result in enumerate(results):
            for choice in ("worst", "random"):
                self.add_queries(shown, result, number, choice)
        template = Template((files("lightning_recall.callbacks") / "report.html").read_text(encoding="utf-8"))
        return template.substitute(
            details="<br>".join(map(html.escape, details)),
            scores=score_table(results),
            charts="".join(chart_section(result, self.seed) for result in results),
            sets="".join(
                f'<option value="{i}">{html.escape(r.name or "test")}</option>' for i, r in enumerate(results)
            ),
            data=json.dumps(shown),  # numbers and base64: nothing that could end the script which holds it
        )

    def add_queries(self, shown: dict[str, Any], result: EvaluationResult, number: int, choice: Choice) -> None:
        """Adds some queries of a test set, and the images that they need."""
        searched = result.search_result
        chosen = choose_queries(searched, self.num_queries, choice, self.seed)
        queries = searched.queries[chosen]
        similarities, neighbors = searched.nearest(queries, self.num_neighbors)
        relevant = searched.is_relevant(queries, neighbors)
        needed = {*queries.tolist(), *neighbors.ravel().tolist()}
        needed -= {int(key.split("/")[1]) for key in shown["images"] if key.startswith(f"{number}/")}
        for row, picture in pictures_of(result, needed).items():
            shown["images"][f"{number}/{row}"] = as_data(thumbnail(picture))
        for place, query in enumerate(queries.tolist()):
            shown["queries"].append(
                {
                    "set": number,
                    "choice": choice,
                    "image": query,
                    "label": "" if searched.labels is None else str(int(searched.labels[query])),
                    "rank": int(searched.first_ranks[chosen[place]]),
                    "neighbors": neighbors[place].tolist(),
                    "similarities": [round(value, 3) for value in similarities[place].tolist()],
                    "right": relevant[place].tolist(),
                }
            )


def score_table(results: list[EvaluationResult]) -> str:
    """Rows of a table, one a test set, in percent."""
    names = list(dict.fromkeys(name for result in results for name in result.search_result.means()))
    head = "".join(
        f"<th>{html.escape(name.replace('recall', 'R'))}</th>" for name in ("", *names, "queries", "searched")
    )
    rows = []
    for result in results:
        means = result.search_result.means()
        cells = [f"{100 * float(means[name]):.2f}" if name in means else "" for name in names]
        cells += [f"{len(result.search_result.queries):,}", f"{len(result.search_result.gallery):,}"]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><th>{html.escape(result.name or 'test')}</th>{row}</tr>")
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def chart_section(result: EvaluationResult, seed: int) -> str:
    """The charts of a test set."""
    title = f"<h3>{html.escape(result.name)}</h3>" if result.name else ""
    charts = charts_of(result.search_result, seed)
    images = [f'<img src="{as_data(chart.draw())}" alt="{chart.title}">' for chart in charts]
    return f'{title}<div class="charts">{"".join(images)}</div>'


def thumbnail(picture: NDArray[np.float64]) -> Image.Image:
    """A small copy of a picture (H, W) or (H, W, 3) in [0, 1]."""
    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def as_data(picture: Figure | Image.Image) -> str:
    """A picture as the address of an image that holds itself."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=90)
    else:
        picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
