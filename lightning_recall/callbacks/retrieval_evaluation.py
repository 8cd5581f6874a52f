"""Logs Recall@k and other retrieval scores in validation and test."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer, callbacks_of, rank_zero_only
from lightning_recall.batch import evaluation_labels
from lightning_recall.callbacks.baselines import PIXELS, UNTRAINED, Baselines
from lightning_recall.callbacks.dataloaders import check_loaders, loader_at, named_loaders
from lightning_recall.callbacks.evaluation_metrics import EvaluationMetrics, embeddings_of_batch
from lightning_recall.callbacks.index_checks import check_recorded
from lightning_recall.callbacks.index_recorder import record_indices, stop_recording
from lightning_recall.callbacks.output import file_name, output_path, print_path, writes_files
from lightning_recall.callbacks.tables import write_tables
from lightning_recall.data.attributes import ground_truth_of
from lightning_recall.metrics import RetrievalScores
from lightning_recall.metrics.scores import AT_K
from lightning_recall.search.result import SearchResult

MODEL = "model"
TITLES = {MODEL: "model", UNTRAINED: "before training", PIXELS: "raw pixels"}


class EvaluationResult(NamedTuple):
    """Result for one dataloader, used by other callbacks; `name` is "" for a single dataloader."""

    name: str
    dataset: Any
    search_result: SearchResult


class RetrievalEvaluation(Callback):
    """Logs `val/recall@k` and `test/recall@k` of a module whose forward returns embeddings (b, D) of images (b, ...).

    Each image is a query against all other images of the split (`RetrievalScores`). A batch is a pair (inputs, labels
    (b,)), and the inputs are passed to forward unchanged. If the module's validation or test step returns a dict with
    "embeddings" (b, D), as `RetrievalModule` does, forward is not called, and a batch may also be a mapping with
    "labels". If the step also returns "labels" (b,), a batch may be anything. Lightning requires a validation_step and
    a test_step, which may be empty.

    ModelCheckpoint and EarlyStopping can monitor the logged keys. With several dataloaders each has its own keys:
    `val/0/recall@1`, `val/1/recall@1`, ..., or `test/small/recall@1` if they are a dict with names. With several
    processes, each process searches the neighbours of its part of the queries; items that the distributed sampler
    repeats are counted once.

    A data set may define bool arrays `is_query` and `is_gallery` (N,): which images are queries, and which are in the
    gallery. It may also define integers `groups` (N,), such as cameras: gallery images with the class and group of the
    query are ignored. These attributes are also read through `Subset` and `ConcatDataset`. A data set with a
    `ground_truth` of easy, hard and junk images, such as revisited Oxford and Paris, is scored by `RevisitedMAP`.

    A dataloader may shuffle: the indices are recorded from its sampler. Without a DataLoader, for an iterable data set,
    or if `collate_fn` reorders items, these attributes and the tables are not available. Images with the label -100,
    such as unreadable files, are ignored.

    `trainer.validate` and `trainer.test` print a table. If the Trainer's progress bar is enabled, searches that take
    more than two seconds show a progress bar.

    Args:
        ks: cut-off ranks k, at least 1.
        scores: which scores of `RetrievalScores` are logged; ModelCheckpoint may monitor `val/map@r`, for example.
        baselines: whether the test also scores raw pixels and the untrained network (the weights at the first `setup`,
            before training or loading a checkpoint) as baselines. They are logged as `test/pixels/recall@k` and
            `test/untrained/recall@k`.
        tables: whether `trainer.validate` and `trainer.test` write the scores of each query and of each class to
            `test_queries.csv` and `test_classes.csv`.

    Raises:
        ValueError: for invalid `ks` or `scores`. During evaluation: if embeddings or labels have the wrong shape, a
            dataloader yields no batch, no class has more than one image, or the indices of a data set are required but
            unknown.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        scores: Sequence[str] = ("recall",),
        baselines: bool = False,
        tables: bool = False,
    ) -> None:
        checked = RetrievalScores(scores, ks)  # validates the arguments early, not after an epoch
        self.ks, self.scores = checked.ks, checked.scores
        self.baselines = Baselines() if baselines else None
        self.tables = tables
        self.metrics = EvaluationMetrics(self.scores, self.ks)
        self.results: list[EvaluationResult] = []  # results of the last validate or test
        self.start_time = 0.0

    def logged_keys(self, trainer: Trainer) -> list[str] | None:
        """Metric keys that validation logs; None if there are no dataloaders yet or one has a `ground_truth`."""
        if trainer.val_dataloaders is None:
            return None
        loaders = named_loaders(trainer.val_dataloaders)
        datasets = [getattr(loader, "dataset", None) for loader in loaders.values()]
        if any(ground_truth_of(dataset) is not None for dataset in datasets):
            return None
        scores = [f"{name}@{k}" for name in self.scores if name in AT_K for k in self.ks]
        scores += [name for name in self.scores if name not in AT_K]
        prefixes = [f"val/{name}/" if len(loaders) > 1 else "val/" for name in loaders]
        return [f"{prefix}{score}" for prefix in prefixes for score in scores]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the initial weights if they are a baseline, and starts to record indices."""
        if self.baselines is not None:
            self.baselines.remember(pl_module)
        record_indices(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops recording indices."""
        stop_recording(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Frees the results of the last test before training."""
        self.results = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the dataloaders, and resets metrics, results and time."""
        check_loaders(loaders_of(trainer))
        if self.requires_indices(trainer):
            check_recorded(loaders_of(trainer), self.requires_indices(trainer))
        self.metrics = EvaluationMetrics(self.scores, self.ks, trainer.progress_bar_callback is not None)
        self.results, self.start_time = [], time.perf_counter()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the dataloaders, and resets metrics, results and time."""
        self.on_validation_epoch_start(trainer, pl_module)
        if self.baselines is not None:
            self.baselines.to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Updates the metrics with a batch."""
        embeddings = {MODEL: embeddings_of_batch(trainer, pl_module, outputs, batch)}
        self.update(trainer, embeddings, evaluation_labels(outputs, batch), batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Updates the metrics with a batch, including those of the baselines."""
        embeddings = {} if self.baselines is None else self.baselines.embed(trainer, pl_module, batch)
        embeddings[MODEL] = embeddings_of_batch(trainer, pl_module, outputs, batch)
        self.update(trainer, embeddings, evaluation_labels(outputs, batch), batch_idx, dataloader_idx)

    def update(
        self, trainer: Trainer, embeddings: dict[str, Tensor], labels: Tensor, batch_idx: int, dataloader_idx: int
    ) -> None:
        """Adds the embeddings (b, D) of each kind to the metrics of their dataloader."""
        loader, reason = loader_at(loaders_of(trainer), dataloader_idx), self.requires_indices(trainer)
        self.metrics.update(trainer, loader, (dataloader_idx, batch_idx), embeddings, labels, reason)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores, except in the sanity check, which sees only a few batches."""
        if not trainer.sanity_checking:
            self.log_scores(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores."""
        self.log_scores(trainer, pl_module, "test")

    def requires_indices(self, trainer: Trainer) -> str:
        """The reason why the evaluation requires indices; "" if it does not."""
        writes_tables = self.tables and trainer.state.fn != "fit"
        return "tables=True writes the data set index of each query" if writes_tables else ""

    def log_scores(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Computes and logs all scores of a split; outside fit, also prints them and stores the results."""
        loaders = named_loaders(loaders_of(trainer))
        names = list(loaders)
        embedding_seconds, search_start = time.perf_counter() - self.start_time, time.perf_counter()
        scores_by_title: dict[str, dict[str, Tensor]] = {}
        for dataloader_idx, kind, result in self.metrics.search(trainer, names):
            name = names[dataloader_idx]
            title = TITLES[kind] + (f" on {'dataloader ' * isinstance(name, int)}{name}" if len(names) > 1 else "")
            prefix = split + (f"/{name}" if len(names) > 1 else "") + (f"/{kind}" if kind != MODEL else "")
            scores_by_title[title] = scores = result.means()
            logged = {f"{prefix}/{key}": score for key, score in scores.items()}
            pl_module.log_dict(logged, sync_dist=True, add_dataloader_idx=False)
            if kind == MODEL and trainer.state.fn != "fit":
                dataset = getattr(loaders[name], "dataset", None)
                self.results.append(EvaluationResult(str(name) if len(names) > 1 else "", dataset, result))
        self.metrics = EvaluationMetrics(self.scores, self.ks)  # frees the embeddings
        if trainer.state.fn != "fit":
            search_seconds = time.perf_counter() - search_start
            caption = f"embedded in {embedding_seconds:.1f} s, searched in {search_seconds:.1f} s"
            print_scores(scores_by_title, split, caption)
            if self.tables and writes_files(trainer):
                self.write_score_tables(trainer, split)

    def write_score_tables(self, trainer: Trainer, split: str) -> None:
        """Writes the tables of each dataloader."""
        for result in self.results:
            prefix = output_path(trainer, file_name(split, result.name))  # must be called on all processes
            if trainer.is_global_zero:
                path = write_tables(result.search_result, result.dataset, prefix)
                print_path("Scores of each query and class", path)


def evaluation_results(trainer: Trainer, callback: Callback) -> list[EvaluationResult]:
    """The results of the Trainer's RetrievalEvaluation from its last validate or test.

    Raises:
        ValueError: if the Trainer has no RetrievalEvaluation; the message names the callback that needs it.
    """
    for evaluation in callbacks_of(trainer):
        if isinstance(evaluation, RetrievalEvaluation):
            return evaluation.results
    name = type(callback).__name__
    raise ValueError(f"{name} needs RetrievalEvaluation: add RetrievalEvaluation() to the callbacks.")


def loaders_of(trainer: Trainer) -> Any:
    """The dataloaders that the Trainer evaluates."""
    return trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders


@rank_zero_only
def print_scores(scores_by_title: dict[str, dict[str, Tensor]], split: str, caption: str) -> None:
    """Prints a table of scores in percent, with a row for the model and for each baseline."""
    title = f"Retrieval on the {split} split, in %"
    table = Table(title=title, caption=caption, min_width=max(len(title), len(caption)))
    table.add_column("")
    for name in next(iter(scores_by_title.values())):
        table.add_column(name.replace("recall", "R"), justify="right")
    for row_title, scores in scores_by_title.items():
        table.add_row(row_title, *(f"{100 * score.item():.1f}" for score in scores.values()))
    Console().print(table)
