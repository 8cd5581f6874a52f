"""Open-set scores: queries whose class may be missing from the gallery, with one prediction and its confidence each."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall.metrics.base import RetrievalMetric
from lightning_recall.metrics.states import concatenated_states, labelled_embeddings
from lightning_recall.metrics.verification import check_false_accept_rates
from lightning_recall.search.best_match import best_matches
from lightning_recall.search.operating_points import largest_count

FALSE_ALARM_RATES = (1e-1, 1e-2)


class Predictions(NamedTuple):
    """The nearest gallery item of each query, as a prediction of its class.

    confidence: (Q,) similarity of the nearest item; float32.
    is_correct: (Q,) bool, whether it has the query's class; a tie with another class is not correct.
    is_known: (Q,) bool, whether the gallery has an item of the query's class.
    """

    confidence: Tensor
    is_correct: Tensor
    is_known: Tensor


def global_average_precision(predictions: Predictions) -> float:
    """GAP, or micro-AP: average precision of all predictions in one ranking by confidence.

    sum_i P(i) rel(i) / M, where prediction i is correct or not (rel), P(i) is the precision of the predictions at least
    as confident, and M is the number of known queries. Each prediction of an unknown query is wrong.

    Source: Weyand, Araujo, Cao, Sim, "Google Landmarks Dataset v2", CVPR 2020; introduced by Perronnin, Liu,
    Renders, "A Family of Contextual Measures of Similarity between Distributions with Application to Image Retrieval",
    CVPR 2009.

    >>> confidence, is_correct = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True])
    >>> round(global_average_precision(Predictions(confidence, is_correct, is_correct)), 4)  # (1 + 2/3) / 2
    0.8333
    """
    order = predictions.confidence.argsort(descending=True)
    is_correct = predictions.is_correct[order].double()
    _, tie, counts = torch.unique_consecutive(predictions.confidence[order], return_inverse=True, return_counts=True)
    last = counts.cumsum(0)[tie]  # (Q,) number of predictions that are at least as confident
    precision = is_correct.cumsum(0)[last - 1] / last
    return float((precision * is_correct).sum() / predictions.is_known.sum())


def identification_rate(predictions: Predictions, false_alarm_rate: float) -> tuple[float, float]:
    """DIR at a false alarm rate, and the threshold; NaN if the rate is below one unknown query.

    The fraction of known queries whose prediction is correct and at least as confident as the threshold: the smallest
    at which at most `false_alarm_rate` of the unknown queries get a prediction.

    Source: Phillips, Grother, Micheals, "Evaluation Methods in Face Recognition", Handbook of Face Recognition, 2011:
    detection and identification rate at rank 1.

    >>> is_known = torch.tensor([True, True, False, False])
    >>> identification_rate(Predictions(torch.tensor([0.9, 0.6, 0.7, 0.2]), is_known, is_known), 0.5)[0]
    1.0
    """
    unknown = predictions.confidence[~predictions.is_known].sort(descending=True).values
    count = largest_count(false_alarm_rate, len(unknown)) if len(unknown) else 0
    if count == 0:
        return math.nan, math.nan
    threshold = torch.nextafter(unknown[count], torch.tensor(torch.inf, device=unknown.device))
    return float(accuracies(predictions, threshold)[0]), float(threshold)


def accuracies(predictions: Predictions, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """Known accuracy: known queries with a correct and accepted prediction. Unknown accuracy: rejected unknown ones."""
    is_accepted = predictions.confidence.double() >= threshold
    known = (is_accepted & predictions.is_correct)[predictions.is_known].double().mean()
    return known, (~is_accepted)[~predictions.is_known].double().mean()


class OpenSetScores(RetrievalMetric):
    """Scores of queries whose class may be missing from the gallery: each gets one prediction, or none.

    The prediction of a query is the class of the nearest gallery item; its confidence is their similarity. A query is
    known if the gallery has another image of its class, otherwise unknown. Ties of classes count against the query.

    - `gap`: global average precision, see `global_average_precision`.
    - `dir@far=0.01`: fraction of known queries that are identified, at the smallest threshold that accepts at most 1 %
      of the unknown queries; NaN with too few unknown queries. See `identification_rate`.
    - with `threshold`: `known_accuracy`, the fraction of known queries with a correct and accepted prediction,
      `unknown_accuracy`, the fraction of unknown queries that are rejected (NaN without any), and
      `open_set_accuracy`, their mean, which Mendes Junior et al., "Nearest neighbors distance ratio open-set
      classifier", Machine Learning 2017, call normalized accuracy.

    Every item queries all others, unless `update` gets is_query or is_gallery. Gallery items with the class and group
    of the query, such as images of the same camera, are ignored.

    Args:
        threshold: similarity from which on a prediction is accepted, such as the one that `ThresholdSelection` chose on
            validation; None: the scores at a threshold are omitted.
        false_alarm_rates: wanted fractions of accepted unknown queries, above 0 and below 1.
        normalize: True, the default: the similarity is the cosine. False: the dot product.
        ignore_index: items with this label are ignored; None ignores nothing.
        progress: whether to show a progress bar if the search takes longer than two seconds.
        kwargs: keyword arguments passed to `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,); `compute` gives {"gap": scalar in [0, 1], "dir@far=0.1": ..., ...}.

    Raises:
        ValueError: for an invalid false alarm rate; in `compute`, without a known query.

    >>> metric = OpenSetScores(threshold=0.9, false_alarm_rates=[])
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([7, 7, 8, 9]))
    >>> metric.compute()  # the first is identified; the second finds the fourth, which is accepted although unknown
    {'gap': tensor(0.1250), 'known_accuracy': tensor(0.), 'unknown_accuracy': tensor(0.5000), ...}
    """

    def __init__(
        self,
        threshold: float | None = None,
        false_alarm_rates: Sequence[float] = FALSE_ALARM_RATES,
        normalize: bool = True,
        ignore_index: int | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_index, **kwargs)
        check_false_accept_rates(false_alarm_rates)
        self.threshold = threshold
        self.false_alarm_rates = tuple(false_alarm_rates)
        self.normalize = normalize
        self.progress = progress

    def compute(self) -> dict[str, Tensor]:
        """Computes all scores."""
        predictions = self.predictions()
        scores: dict[str, float] = {"gap": global_average_precision(predictions)}
        for rate in self.false_alarm_rates:
            scores[f"dir@far={rate:g}"] = identification_rate(predictions, rate)[0]
        if self.threshold is not None:
            known, unknown = map(float, accuracies(predictions, self.threshold))
            scores |= {"known_accuracy": known, "unknown_accuracy": unknown, "open_set_accuracy": (known + unknown) / 2}
        return {name: torch.tensor(value, device=self.device) for name, value in scores.items()}

    def predictions(self) -> Predictions:
        """The prediction of each query, in the order of the items.

        With several processes, call it within `sync_context()`. `compute` does this automatically. Every process gets
        the full result.
        """
        states = concatenated_states(self, self.ignore_index)
        queries, gallery = (
            labelled_embeddings(states, states[name].nonzero().squeeze(1), self.normalize)
            for name in ("is_query", "is_gallery")
        )
        matches = best_matches(queries, gallery, self.processes(), self.progress)
        is_known = matches.same_label.isfinite()
        if not is_known.any():
            raise ValueError(
                f"None of the {len(is_known)} queries has another image of its class in the gallery: evaluate classes "
                "with at least 2 images, and pass all batches to update()."
            )
        unit = (queries.embeddings.scale or 1.0) ** 2
        confidence = torch.maximum(*matches) * unit
        return Predictions(confidence, matches.same_label > matches.other_label, is_known)
