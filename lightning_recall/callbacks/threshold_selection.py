"""Chooses on validation from which similarity on two images show the same class, and keeps it with the module."""

from collections.abc import Sequence
from typing import Any, Literal

from rich import get_console
from rich.table import Table

from lightning_recall._lightning import LightningModule, Trainer, rank_zero_only
from lightning_recall.callbacks.dataloaders import named_loaders
from lightning_recall.callbacks.evaluation_listener import Evaluated, EvaluationListener
from lightning_recall.callbacks.output import end_progress_bar, file_name, output_path, save_picture, writes_files
from lightning_recall.callbacks.retrieval_evaluation import evaluation_results
from lightning_recall.metrics import RetrievalScores
from lightning_recall.metrics.verification import FALSE_ACCEPT_RATES, Verification, VerificationScores, scores_of
from lightning_recall.plots.verification import draw_verification
from lightning_recall.search.operating_points import OperatingPoint

ATTRIBUTE = "similarity_threshold"  # of the module, and key in checkpoints


class ThresholdSelection(EvaluationListener):
    """In each validation, chooses the similarity threshold and saves it with the module; in the test, applies it.

    The threshold decides whether two images show the same class. It is chosen over all pairs of validation images, see
    `VerificationScores`, and kept as `module.similarity_threshold` = {"similarity": ..., "false_accept_rate": ...,
    "true_accept_rate": ..., "split": "val"}: the threshold and its rates on validation. Every checkpoint holds the
    threshold of its weights. Requires a `RetrievalEvaluation`, whose embeddings it uses.

    Validation logs `val/threshold` and, by criterion, `val/tar@far=0.001`, `val/tar@eer` (TAR at the equal error) or
    `val/f1`. The test logs the TAR at each false accept rate, `test/eer`, and, if there is a threshold,
    `test/tar@threshold` and `test/far@threshold`, and writes `verification.png` with ROC and DET curve.
    `trainer.validate` and `trainer.test` print a table. With several dataloaders, the first one of the validation
    chooses the threshold; each dataloader has its own keys, such as `val/small/tar@far=0.001`.

    Args:
        criterion: the wanted false accept rate, above 0 and below 1: the fraction of pairs of different classes that
            are accepted. "eer": the threshold at which false accept and false reject rate are equal. "f1": the
            threshold with the largest F1 score of the accepted pairs.
        false_accept_rates: rates of the table and of the test's scores.

    Raises:
        ValueError: for an unknown criterion or a rate outside of (0, 1); during evaluation, if there is no
            `RetrievalEvaluation`, no class labels, no pair of the same class or none of different classes, or if the
            wanted rate is less than one pair.
    """

    def __init__(
        self,
        criterion: float | Literal["eer", "f1"] = 1e-3,
        false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    ) -> None:
        if isinstance(criterion, str) and criterion not in ("eer", "f1"):
            raise ValueError(
                f'criterion must be a false accept rate, such as 0.001, or "eer" or "f1", got {criterion!r}.'
            )
        self.criterion = criterion
        chosen = [] if isinstance(criterion, str) else [criterion]
        rates = sorted({*false_accept_rates, *chosen}, reverse=True)
        self.false_accept_rates = VerificationScores(rates).false_accept_rates  # checks the rates
        self.results: dict[str, tuple[Verification, float | None]] = {}  # of the last test, by name of the dataloader

    @property
    def score(self) -> str:
        """Name of the score at the chosen threshold."""
        return {"eer": "tar@eer", "f1": "f1"}.get(str(self.criterion)) or f"tar@far={self.criterion:g}"

    def logged_keys(self, trainer: Trainer) -> list[str] | None:
        """Keys of the scores that validation logs; None if there are no dataloaders yet."""
        if trainer.val_dataloaders is None:
            return None
        names = list(named_loaders(trainer.val_dataloaders))
        return [f"val/{name}/{self.score}" if len(names) > 1 else f"val/{self.score}" for name in names]

    @property
    def scores(self) -> Sequence[str]:
        """Names of the scores that validation logs."""
        return (self.score,)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there is a RetrievalEvaluation."""
        if stage != "predict":
            evaluation_results(trainer, self)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves the threshold, also of modules that do not save it themselves."""
        threshold = getattr(pl_module, ATTRIBUTE, None)
        if threshold is not None:
            checkpoint.setdefault(ATTRIBUTE, dict(threshold))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores the threshold."""
        saved = checkpoint.get(ATTRIBUTE)
        setattr(pl_module, ATTRIBUTE, None if saved is None else dict(saved))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last test."""
        self.results = {}

    def on_evaluated(self, trainer: Trainer, pl_module: LightningModule, evaluated: Evaluated) -> None:
        """Chooses and logs the threshold in validation, or logs the rates at the saved one in a test."""
        saved = getattr(pl_module, ATTRIBUTE, None)
        threshold = float(saved["similarity"]) if saved is not None and evaluated.split == "test" else None
        result = self.verify(trainer, evaluated, threshold)
        prefix = f"{evaluated.split}/{evaluated.name}".rstrip("/")
        if evaluated.split == "val":
            point, scores = self.chosen(result)
            if evaluated.number == 0:
                chosen = dict(zip(("similarity", *OperatingPoint._fields[1:]), point, strict=True))
                setattr(pl_module, ATTRIBUTE, {**chosen, "split": evaluated.split})
        else:
            scores = scores_of(result)
            if threshold is not None:
                _, far, tar = result.at_threshold[threshold]
                scores |= {"tar@threshold": tar, "far@threshold": far}
            self.results[evaluated.name] = result, threshold
        logged = {f"{prefix}/{name}": value for name, value in scores.items() if value == value}  # without NaN
        pl_module.log_dict(logged, sync_dist=True, add_dataloader_idx=False)
        if trainer.state.fn != "fit":
            end_progress_bar(trainer)
            print_verification(result, threshold, f"Verification on the {prefix} split")

    def verify(self, trainer: Trainer, evaluated: Evaluated, threshold: float | None) -> Verification:
        """Operating points of all pairs of a dataloader, on all processes."""
        if not isinstance(evaluated.metric, RetrievalScores):
            raise ValueError(
                "ThresholdSelection needs class labels, but the data set has a ground_truth of landmarks instead: "
                "remove the callback."
            )
        shown = trainer.progress_bar_callback is not None
        metric = VerificationScores(self.false_accept_rates, evaluated.metric.normalize, progress=shown)
        metric = metric.to(evaluated.metric.device)
        metric.share_items(evaluated.metric)
        with metric.sync_context():
            return metric.verify([] if threshold is None else [threshold], self.criterion == "f1")

    def chosen(self, result: Verification) -> tuple[OperatingPoint, dict[str, float]]:
        """The chosen operating point, and the scores that validation logs."""
        if self.criterion == "f1":
            point, score = result.best_f1, result.f1
        else:
            is_rate = not isinstance(self.criterion, str)
            point = result.at_false_accept_rate[float(self.criterion)] if is_rate else result.equal_error
            score = point.true_accept_rate
        if point.threshold != point.threshold:  # NaN
            raise ValueError(
                f"A false accept rate of {self.criterion:g} is less than one of the {result.num_impostor:,} pairs of "
                "different classes in validation: choose a larger criterion, or validate on more images."
            )
        return point, {self.score: score, "threshold": point.threshold}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws ROC and DET curve."""
        if not writes_files(trainer):
            return
        for name, (result, threshold) in self.results.items():
            path = output_path(trainer, file_name("verification", name) + ".png")  # must be called on all processes
            if trainer.is_global_zero:
                points = {"equal error": result.equal_error}
                if threshold is not None:
                    points["saved threshold"] = result.at_threshold[threshold]
                save_picture(trainer, draw_verification(result.roc, points), path, "ROC and DET curve")


@rank_zero_only
def print_verification(result: Verification, threshold: float | None, title: str) -> None:
    """Prints FAR, TAR and threshold of each operating point; "-" where there are too few pairs."""
    pairs = f"{result.num_genuine:,} pairs of the same class, {result.num_impostor:,} of different classes"
    table = Table(title=title, caption=pairs, min_width=len(pairs))
    for column in ("", "FAR, %", "TAR, %", "threshold"):
        table.add_column(column, justify="right" if column else "left")
    rows = {f"FAR <= {100 * rate:g} %": point for rate, point in result.at_false_accept_rate.items()}
    rows[f"equal error {100 * result.equal_error_rate:.2f} %"] = result.equal_error
    if threshold is not None:
        rows["saved threshold"] = result.at_threshold[threshold]
    for name, (similarity, far, tar) in rows.items():
        cells = [f"{100 * far:.3g}", f"{100 * tar:.1f}", f"{similarity:.4f}"] if similarity == similarity else ["-"] * 3
        table.add_row(name, *cells)
    get_console().print(table)
