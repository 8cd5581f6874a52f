"""Scores any LightningModule by Recall@k and its kin on validation and test."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call

from lightning_recall._lightning import Callback, LightningModule, Trainer, callbacks_of, rank_zero_only
from lightning_recall.callbacks.batches import (
    UNREADABLE,
    check_loaders,
    describe,
    embeddings_of_batch,
    inputs_of_batch,
    labels_of_batch,
    loader_at,
    named_loaders,
)
from lightning_recall.callbacks.index_checks import check_needless, check_recorded, check_shares
from lightning_recall.callbacks.index_recorder import indices_of_batch, record_indices, stop_recording
from lightning_recall.callbacks.output import file_name, keeps_files, output_path, print_path
from lightning_recall.callbacks.tables import write_tables
from lightning_recall.data.attributes import ground_truth_of, roles_of
from lightning_recall.metrics import RetrievalScores, RevisitedMAP
from lightning_recall.metrics.revisited import GroundTruth
from lightning_recall.metrics.scores import AT_K
from lightning_recall.search.result import SearchResult

MODEL, UNTRAINED, PIXELS = "model", "untrained", "pixels"
ROW_NAMES = {MODEL: "model", UNTRAINED: "before training", PIXELS: "raw pixels"}


class EvaluationResult(NamedTuple):
    """What the model found in a dataloader, for callbacks that draw or report it; `name` is "" if there is one only."""

    name: str
    dataset: Any
    search_result: SearchResult


class RetrievalEvaluation(Callback):
    """Logs `val/recall@k` and `test/recall@k` of a module whose forward gives embeddings (b, D) of images (b, ...).

    Every image of the split queries all the others (`RetrievalScores`). A batch is a pair (inputs, labels (b,)), and
    forward gets the inputs as they are. Where the module's validation or test step returns a dict with "embeddings"
    (b, D), as `RetrievalModule`'s do, forward is not called, and a batch may also be a mapping with "labels". Where the
    step returns "labels" (b,) beside the embeddings, a batch may be anything. A module needs such steps, even empty
    ones, for Lightning to run over the data.

    ModelCheckpoint and EarlyStopping can monitor the logged keys. With several dataloaders each has its own:
    `val/0/recall@1`, `val/1/recall@1`, ..., or `test/small/recall@1` where they are a dict with names. With several
    processes each searches for its share of the queries, and an image that fills up a process's last batch counts once.

    A data set may tell by `is_query` and `is_gallery`, arrays (N,) of bool, which images search and which are searched,
    and by `groups`, (N,) integers, which images of its own class a query passes over: those of its own camera, say. One
    with a `ground_truth` of easy, hard and junk images, such as revisited Oxford and Paris, is scored by
    `RevisitedMAP`. A `Subset` or `ConcatDataset` keeps what its parts tell. A dataloader may shuffle: its rows are
    recorded as its sampler draws them (`row_recorder`). Any other iterable of batches, or a `collate_fn` that sorts, is
    scored without roles and tables. Images with the label -100 are left out: files that could not be read.

    `trainer.validate` and `trainer.test` end with a table. Where the Trainer shows bars, a search that takes more than
    two seconds shows one.

    Args:
        ks: cut-offs, integers from 1.
        scores: which scores of `RetrievalScores` are logged; ModelCheckpoint may monitor `val/map@r`, for example.
        baselines: whether the test also scores, in the same pass, the raw pixels and the weights that the module had
            when this callback first saw it, before training or before a checkpoint was loaded. They are logged as
            `test/pixels/recall@k` and `test/untrained/recall@k`.
        tables: whether `trainer.validate` and `trainer.test` write the scores of each query and of each class to
            `test_queries.csv` and `test_classes.csv`.

    Raises:
        ValueError: for wrong `ks` or `scores`, and during evaluation if the embeddings or labels of a batch are not
            what `RetrievalScores` takes, a dataloader gives no batch, no image has another of its class, or the rows of
            a data set are needed but not known.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        scores: Sequence[str] = ("recall",),
        baselines: bool = False,
        tables: bool = False,
    ) -> None:
        checked = RetrievalScores(scores, ks)  # refuses wrong ones now, not after an epoch
        self.ks, self.scores = checked.ks, checked.scores
        self.baselines = baselines
        self.tables = tables
        self.initial_state: dict[str, Tensor] = {}
        self.initial_module: LightningModule | None = None  # whose weights those are
        self.metrics: dict[tuple[int, str], RetrievalScores | RevisitedMAP] = {}  # (dataloader, what is scored)
        self.roles: dict[int, dict[str, Tensor]] = {}  # of the rows (N,) of each dataloader's data set
        self.has_rows: dict[int, bool] = {}  # whether the rows of all batches of a dataloader are known so far
        self.results: list[EvaluationResult] = []  # of the last validate or test
        self.started = 0.0
        self.shows_bar = True

    def logged_keys(self, trainer: Trainer) -> list[str] | None:
        """Keys that a validation will log; None before there are dataloaders, and for one with a `ground_truth`."""
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
        """Keeps a copy of the weights before training, if they are to be scored; has the rows of batches recorded."""
        if self.baselines and self.initial_module is not pl_module:
            state = (*pl_module.named_parameters(), *pl_module.named_buffers())
            self.initial_state = {name: value.detach().clone() for name, value in state}
            self.initial_module = pl_module
        record_indices(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the recording."""
        stop_recording(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Frees what the last test found: a training needs the memory."""
        self.results = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last evaluation."""
        check_loaders(loaders_of(trainer))
        if self.needs_rows(trainer):
            check_recorded(loaders_of(trainer), self.needs_rows(trainer))
        self.metrics, self.roles, self.has_rows = {}, {}, {}
        self.results, self.started = [], time.perf_counter()
        self.shows_bar = trainer.progress_bar_callback is not None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last evaluation."""
        self.on_validation_epoch_start(trainer, pl_module)
        self.initial_state = {name: value.to(pl_module.device) for name, value in self.initial_state.items()}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes in a batch."""
        scored = {MODEL: embeddings_of_batch(trainer, pl_module, outputs, batch)}
        self.update(trainer, scored, labels_of_batch(outputs, batch), batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes in a batch, for the baselines too."""
        scored = {}
        if self.baselines:
            inputs = inputs_of_batch(batch)
            if not isinstance(inputs, Tensor):
                raise ValueError(
                    f"baselines=True scores the pixels of images: inputs must be a tensor, got {describe(inputs)}."
                )
            scored[PIXELS] = inputs.flatten(1).float()
            with trainer.precision_plugin.forward_context():
                scored[UNTRAINED] = functional_call(pl_module, self.initial_state, (inputs,))
        scored[MODEL] = embeddings_of_batch(trainer, pl_module, outputs, batch)
        self.update(trainer, scored, labels_of_batch(outputs, batch), batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores, except of the sanity check, which sees too little to score."""
        if not trainer.sanity_checking:
            self.log_scores(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores."""
        self.log_scores(trainer, pl_module, "test")

    def update(
        self, trainer: Trainer, scored: dict[str, Tensor], labels: Tensor, batch_idx: int, dataloader_idx: int
    ) -> None:
        """Adds a batch to the metrics of its dataloader, one for each kind of embeddings (b, D) in `scored`."""
        loader = loader_at(loaders_of(trainer), dataloader_idx)
        dataset = getattr(loader, "dataset", None)
        if dataloader_idx not in self.roles:
            self.roles[dataloader_idx], self.has_rows[dataloader_idx] = roles_of(dataset), True
        roles = self.roles[dataloader_idx]
        known = self.has_rows[dataloader_idx]
        rows = indices_of_batch(loader, batch_idx, len(labels), labels) if known else None  # (b,)
        if rows is None:
            check_needless(trainer, loader, roles, self.needs_rows(trainer))
            self.forget_rows(dataloader_idx)
        for kind, embeddings in scored.items():
            metric = self.metrics.get((dataloader_idx, kind)) or self.metric_of(dataset).to(embeddings.device)
            self.metrics[dataloader_idx, kind] = metric
            chosen = {} if rows is None else {name: values[rows] for name, values in roles.items()}
            metric.update(embeddings, labels.to(embeddings.device), rows, **chosen)

    def needs_rows(self, trainer: Trainer) -> str:
        """Why the rows of batches are needed after the evaluation; "" if they are not."""
        tables = self.tables and trainer.state.fn != "fit"
        return "tables=True names the rows of the data set" if tables else ""

    def forget_rows(self, dataloader_idx: int) -> None:
        """Scores a dataloader without row numbers, also its batches so far."""
        self.has_rows[dataloader_idx] = False
        for (number, _), metric in self.metrics.items():
            if number == dataloader_idx:
                metric.indices.clear()

    def metric_of(self, dataset: Any) -> RetrievalScores | RevisitedMAP:
        """What a data set is scored by: mAP where it tells a `ground_truth`, else the scores asked for."""
        ground_truth = ground_truth_of(dataset)
        if ground_truth is None:
            return RetrievalScores(self.scores, self.ks, ignore_index=UNREADABLE, progress=self.shows_bar)
        return RevisitedMAP([GroundTruth(*parts) for parts in ground_truth], self.ks, UNREADABLE)

    def log_scores(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Computes and logs all scores of a split; shows and keeps them unless the training is going on."""
        loaders = named_loaders(loaders_of(trainer))
        names = list(loaders)
        silent = [str(name) for number, name in enumerate(names) if (number, MODEL) not in self.metrics]
        if silent:
            raise ValueError(f"Nothing to score: no batch came from dataloader {', '.join(silent)}.")
        embedded, searching = time.perf_counter() - self.started, time.perf_counter()
        rows: dict[str, dict[str, Tensor]] = {}
        for (number, scored), metric in self.metrics.items():
            part = names[number]
            name = ROW_NAMES[scored] + (f" on {'dataloader ' * isinstance(part, int)}{part}" if len(names) > 1 else "")
            prefix = split + (f"/{part}" if len(names) > 1 else "") + (f"/{scored}" if scored != MODEL else "")
            if not self.has_rows[number]:
                check_shares(trainer, metric, name)
            with metric.sync_context():
                searched = metric.search()
            rows[name] = scores = searched.means()
            logged = {f"{prefix}/{key}": score for key, score in scores.items()}
            pl_module.log_dict(logged, sync_dist=True, add_dataloader_idx=False)
            if scored == MODEL and trainer.state.fn != "fit":
                dataset = getattr(loaders[part], "dataset", None)
                self.results.append(EvaluationResult(str(part) if len(names) > 1 else "", dataset, searched))
        self.metrics = {}
        if trainer.state.fn != "fit":
            seconds = time.perf_counter() - searching
            print_scores(rows, split, f"embedded in {embedded:.1f} s, searched in {seconds:.1f} s")
            if self.tables and keeps_files(trainer):
                self.write_results(trainer, split)

    def write_results(self, trainer: Trainer, split: str) -> None:
        """Writes the tables of each dataloader."""
        for result in self.results:
            prefix = output_path(trainer, file_name(split, result.name))  # asks all processes
            if trainer.is_global_zero:
                print_path("Scores of each query and class", write_tables(result.search_result, result.dataset, prefix))


def results_of(trainer: Trainer, callback: Callback) -> list[EvaluationResult]:
    """What the Trainer's RetrievalEvaluation has found in its last validate or test.

    Raises:
        ValueError: if it has none, naming the callback that needs it.
    """
    for evaluation in callbacks_of(trainer):
        if isinstance(evaluation, RetrievalEvaluation):
            return evaluation.results
    name = type(callback).__name__
    raise ValueError(f"{name} shows what RetrievalEvaluation finds: add RetrievalEvaluation() to the callbacks, too.")


def loaders_of(trainer: Trainer) -> Any:
    """The dataloaders that the Trainer evaluates."""
    return trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders


@rank_zero_only
def print_scores(rows: dict[str, dict[str, Tensor]], split: str, caption: str) -> None:
    """Prints one row of percentages for each thing scored."""
    title = f"Retrieval on the {split} split, in %"
    table = Table(title=title, caption=caption, min_width=max(len(title), len(caption)))
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(name.replace("recall", "R"), justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * score.item():.1f}" for score in scores.values()))
    Console().print(table)
