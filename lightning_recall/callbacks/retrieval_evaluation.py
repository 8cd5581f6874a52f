"""Logs Recall@k and other retrieval scores in validation and test."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer, callbacks_of
from lightning_recall.batch import evaluation_labels
from lightning_recall.callbacks.baselines import Baselines, embed_before_training
from lightning_recall.callbacks.dataloaders import check_loaders, loader_at, loaders_of, named_loaders
from lightning_recall.callbacks.evaluation_listener import Evaluated, notify_listeners
from lightning_recall.callbacks.evaluation_metrics import EvaluationMetrics, embeddings_of_batch
from lightning_recall.callbacks.index_checks import check_recorded
from lightning_recall.callbacks.index_recorder import record_indices, stop_recording
from lightning_recall.callbacks.output import end_progress_bar, file_name, output_path, print_path, writes_files
from lightning_recall.callbacks.score_rows import MODEL, print_if_below, print_scores, row_title
from lightning_recall.callbacks.tables import write_tables
from lightning_recall.callbacks.validation_history import Validation, ValidationHistory, print_verdict
from lightning_recall.data.attributes import ground_truth_of
from lightning_recall.metrics import RetrievalScores
from lightning_recall.metrics.bootstrap import Interval, score_intervals
from lightning_recall.metrics.scores import score_names
from lightning_recall.search.result import SearchResult

HISTORY = "validation_history"  # key in checkpoints


class EvaluationResult(NamedTuple):
    """Result for one dataloader, used by other callbacks; `name` is "" for a single one, `intervals` may be empty."""

    name: str
    dataset: Any
    search_result: SearchResult
    intervals: dict[str, Interval]


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
        baselines: whether to score what the training starts from: the features of the backbone (of modules with a
            method `features`, as `RetrievalModule`) and the untrained network, with the weights before the first
            `fit` or `test`. `fit` scores them before the first step: the sanity check runs on all validation batches,
            unless `num_sanity_val_steps` is 0; the keys are `val/pretrained/recall@k` and
            `val/untrained/recall@k`. If the training ends below the first of them, a paragraph says so, and what to
            try. The test scores both and raw pixels: `test/pretrained/recall@k`, `test/untrained/recall@k` and
            `test/pixels/recall@k`.
        tables: whether `trainer.validate` and `trainer.test` write the scores of each query and of each class to
            `test_queries.csv` and `test_classes.csv`.
        intervals: whether the printed table and the report show 95 % intervals over the classes of the queries
            (`metrics.class_bootstraps`). `RevisitedMAP` has none: its queries of one landmark are not independent.

    Raises:
        ValueError: for invalid `ks` or `scores`. During evaluation: if embeddings or labels have the wrong shape, a
            dataloader yields no batch, no class has more than one image, or the indices of a data set are required but
            unknown.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        scores: Sequence[str] = ("recall", "map@r"),
        baselines: bool = False,
        tables: bool = False,
        intervals: bool = True,
    ) -> None:
        checked = RetrievalScores(scores, ks)  # validates the arguments early, not after an epoch
        self.ks, self.scores = checked.ks, checked.scores
        self.baselines = Baselines() if baselines else None
        self.tables, self.intervals = tables, intervals
        self.metrics = EvaluationMetrics(self.scores, self.ks)
        self.results: list[EvaluationResult] = []  # results of the last validate or test
        self.start_time = 0.0
        self.history = ValidationHistory()  # of the last fit
        self.history_key = " ".join([*self.scores, *map(str, self.ks)])
        self.sanity_steps: float = 0  # of the Trainer

    def logged_keys(self, trainer: Trainer) -> list[str] | None:
        """Metric keys that validation logs; None if there are no dataloaders yet or one has a `ground_truth`."""
        if trainer.val_dataloaders is None:
            return None
        loaders = named_loaders(trainer.val_dataloaders)
        datasets = [getattr(loader, "dataset", None) for loader in loaders.values()]
        if any(ground_truth_of(dataset) is not None for dataset in datasets):
            return None
        prefixes = [f"val/{name}/" if len(loaders) > 1 else "val/" for name in loaders]
        return [f"{prefix}{score}" for prefix in prefixes for score in score_names(self.scores, self.ks)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the initial weights if they are a baseline, and starts to record indices."""
        if self.baselines is not None and stage in ("fit", "test"):
            self.baselines.remember(pl_module)
        if stage == "fit" and trainer.global_step == 0:
            self.history = ValidationHistory()
        record_indices(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops recording indices."""
        stop_recording(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Frees the results of the last test before training."""
        self.results = []

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Extends the sanity check to all validation batches if it scores the baselines."""
        if self.scores_baselines(trainer):
            self.sanity_steps = trainer.num_sanity_val_steps
            trainer.num_sanity_val_steps = float("inf")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the number of batches of a sanity check."""
        if self.scores_baselines(trainer):
            trainer.num_sanity_val_steps = self.sanity_steps

    def scores_baselines(self, trainer: Trainer) -> bool:
        """Whether validation scores the baselines now: in the sanity check of a new training."""
        return self.baselines is not None and bool(trainer.sanity_checking) and trainer.global_step == 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and logs the baselines that the sanity check has scored."""
        if self.history.new_baselines:
            print_scores(self.history.new_baselines, "Before training: retrieval on the val split, in %")
            for logger in trainer.loggers:
                logger.log_metrics(self.history.new_metrics, step=0)
            self.history.new_baselines = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what to try if the training ends below the baseline."""
        print_verdict(trainer, self.history)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves the baselines and validation scores of the training."""
        checkpoint.setdefault(HISTORY, {})[self.history_key] = self.history.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores the baselines and validation scores of a resumed training."""
        state = checkpoint.get(HISTORY, {}).get(self.history_key)
        if state is not None and trainer.state.fn == "fit":
            self.history.load_state_dict(state)

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
        model = embeddings_of_batch(trainer, pl_module, outputs, batch)
        embeddings = {MODEL: model}
        if self.scores_baselines(trainer):
            embeddings = embed_before_training(trainer, pl_module, batch, model)
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
        """Logs the scores; the sanity check, which sees only a few batches, has none except those of the baselines."""
        if self.scores_baselines(trainer):
            self.keep_baselines(trainer, pl_module)
        elif not trainer.sanity_checking:
            self.log_scores(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores."""
        self.log_scores(trainer, pl_module, "test")

    def requires_indices(self, trainer: Trainer) -> str:
        """The reason why the evaluation requires indices; "" if it does not."""
        writes_tables = self.tables and trainer.state.fn != "fit"
        return "tables=True writes the data set index of each query" if writes_tables else ""

    def keep_baselines(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the scores of the baselines before training."""
        names = list(named_loaders(loaders_of(trainer)))
        for dataloader_idx, kind, result in self.metrics.search(trainer, names):
            part = f"{names[dataloader_idx]}/" if len(names) > 1 else ""
            self.history.add_baseline(row_title(kind, pl_module, names, dataloader_idx), kind, part, result.means())
        self.metrics = EvaluationMetrics(self.scores, self.ks)  # frees the embeddings

    def log_scores(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Computes and logs all scores of a split; outside fit, also prints them and stores the results."""
        loaders = named_loaders(loaders_of(trainer))
        names = list(loaders)
        embedding_seconds, search_start = time.perf_counter() - self.start_time, time.perf_counter()
        rows: dict[str, dict[str, Tensor]] = {}
        intervals: dict[str, dict[str, Interval]] = {}
        model_scores: dict[str, float] = {}
        for dataloader_idx, kind, result in self.metrics.search(trainer, names):
            name = names[dataloader_idx]
            prefix = split + (f"/{name}" if len(names) > 1 else "") + (f"/{kind}" if kind != MODEL else "")
            title = row_title(kind, pl_module, names, dataloader_idx)
            rows[title] = scores = result.means()
            intervals[title] = score_intervals(result) if self.intervals and trainer.state.fn != "fit" else {}
            logged = {f"{prefix}/{key}": score for key, score in scores.items()}
            pl_module.log_dict(logged, sync_dist=True, add_dataloader_idx=False)
            if kind == MODEL:
                model_scores |= {key: score.item() for key, score in logged.items()}
                metric, own_name = self.metrics.metrics[dataloader_idx, kind], str(name) if len(names) > 1 else ""
                notify_listeners(trainer, pl_module, Evaluated(split, dataloader_idx, own_name, metric))
            if kind == MODEL and trainer.state.fn != "fit":
                dataset = getattr(loaders[name], "dataset", None)
                shown_name = str(name) if len(names) > 1 else ""
                self.results.append(EvaluationResult(shown_name, dataset, result, intervals[title]))
        self.metrics = EvaluationMetrics(self.scores, self.ks)  # frees the embeddings
        if trainer.state.fn == "fit":
            self.history.validations.append(Validation(trainer.current_epoch + 1, model_scores))
            return
        end_progress_bar(trainer)
        search_seconds = time.perf_counter() - search_start
        caption = f"embedded in {embedding_seconds:.1f} s, searched in {search_seconds:.1f} s"
        print_scores(rows, f"Retrieval on the {split} split, in %", caption, intervals)
        print_if_below(rows, pl_module)
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
