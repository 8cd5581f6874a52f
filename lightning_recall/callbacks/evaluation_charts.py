"""Writes the charts of a test: similarity histograms, Recall@k against k, and a 2-D PCA of the embeddings."""

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.callbacks.item_names import class_names_of
from lightning_recall.callbacks.output import file_name, output_path, save_picture, writes_files
from lightning_recall.callbacks.retrieval_evaluation import evaluation_results
from lightning_recall.plots.charts import charts_of


class EvaluationCharts(Callback):
    """After a test, writes `similarities.png`, `recall_over_k.png` and `embedding_map.png`.

    `similarities.png` shows two histograms: the similarities of queries to images of their class, and to images of
    other classes. Their overlap shows how much classes are confused. `recall_over_k.png` shows Recall@k for every k up
    to 1,000. `embedding_map.png` shows the embeddings of some classes on their first two principal components; it needs
    labels.

    Requires a `RetrievalEvaluation`. With several test sets, one plot per set is written. The plots are also sent to
    loggers that support images. `lightning_recall.plots` draws the same figures without Lightning.

    Args:
        seed: seed for sampling queries and classes.

    Raises:
        ValueError: at test start, if there is no `RetrievalEvaluation`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks at test start that the charts can be drawn."""
        evaluation_results(trainer, self)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the charts."""
        if not writes_files(trainer):
            return
        for result in evaluation_results(trainer, self):
            for chart in charts_of(result.search_result, self.seed, class_names_of(result.dataset)):
                name = file_name(chart.name, result.name) + ".png"
                path = output_path(trainer, name)  # must be called on all processes
                if trainer.is_global_zero:
                    save_picture(trainer, chart.draw(), path, chart.title)
