import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, jaccard_score, precision_score, recall_score
from torchmetrics.functional.classification import multiclass_jaccard_index, multiclass_precision

from lightning_recall.segmentation.scores import MEANS, PER_CLASS, SegmentationScores, flat_scores

C = 7


def draw(seed, occurring=range(C), predicted=range(C)):
    """Predictions and target (4, 9, 11); about a tenth of the pixels are ignored."""
    rng = np.random.default_rng(seed)
    target, guess = rng.choice(list(occurring), (4, 9, 11)), rng.choice(list(predicted), (4, 9, 11))
    is_right = (rng.random(target.shape) < 0.4) & np.isin(target, list(predicted))
    predictions = np.where(is_right, target, guess)
    target[rng.random(target.shape) < 0.1] = 255
    return torch.tensor(predictions), torch.tensor(target)


def scores_of_batches(predictions, target, ignore_index=255):
    metric = SegmentationScores(C, ignore_index)
    for part in (slice(0, 1), slice(1, 4)):
        metric.update(predictions[part], target[part])
    return metric.compute(), metric


ABSENT = [
    (range(C), range(C)),
    ((0, 2, 3), range(C)),  # classes that are only predicted
    (range(C), (1, 2)),  # classes that are never predicted
    ((0, 1, 2), (2, 3, 4)),  # some that are neither
    ((4,), (4,)),
    ((4,), (5,)),
]


@pytest.mark.parametrize(("occurring", "predicted"), ABSENT)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_equal_to_sklearn(occurring, predicted):
    predictions, target = draw(1, occurring, predicted)
    scores, metric = scores_of_batches(predictions, target)
    y, p = target[target != 255].numpy(), predictions[target != 255].numpy()
    classes = list(range(C))
    assert np.array_equal(metric.confusion.numpy(), confusion_matrix(y, p, labels=classes))
    either = np.isin(classes, y) | np.isin(classes, p)
    expected = {
        "iou": jaccard_score(y, p, labels=classes, average=None, zero_division=0),
        "accuracy": recall_score(y, p, labels=classes, average=None, zero_division=np.nan),
        "precision": precision_score(y, p, labels=classes, average=None, zero_division=0),
        "pixel_fraction": np.bincount(y, minlength=C) / len(y),
    }
    expected["iou"][~either] = expected["precision"][~either] = np.nan
    for name, values in expected.items():
        assert np.allclose(scores[name].numpy(), values, rtol=0, atol=1e-12, equal_nan=True), name
    means = {
        "miou": expected["iou"][either].mean(),
        "mean_precision": expected["precision"][either].mean(),
        "pixel_accuracy": (y == p).mean(),
    }
    if set(p) <= set(y):  # sklearn warns otherwise
        means["mean_accuracy"] = balanced_accuracy_score(y, p)
    for name, value in means.items():
        assert scores[name].item() == pytest.approx(value, abs=1e-12), name
    assert set(scores) == {*MEANS, *PER_CLASS, "pixel_fraction"}


@pytest.mark.parametrize(("occurring", "predicted"), ABSENT)
def test_equal_to_torchmetrics(occurring, predicted):
    predictions, target = draw(2, occurring, predicted)
    scores, _ = scores_of_batches(predictions, target)
    arguments = {"num_classes": C, "average": "macro", "ignore_index": 255}
    assert scores["miou"].item() == pytest.approx(multiclass_jaccard_index(predictions, target, **arguments).item())
    assert scores["mean_precision"].item() == pytest.approx(
        multiclass_precision(predictions, target, **arguments).item()
    )


def test_by_hand():
    """Class 0: 2 of 3 right. Class 1: never predicted. Class 2: only predicted. Class 3: neither."""
    metric = SegmentationScores(4, ignore_index=9)
    metric.update(torch.tensor([[0, 0, 2, 0, 1]]), torch.tensor([[0, 0, 0, 1, 9]]))
    scores = metric.compute()
    nan = float("nan")
    assert torch.equal(metric.confusion[:2, :3], torch.tensor([[2, 0, 1], [1, 0, 0]]))
    for name, values in (
        ("iou", [0.5, 0, 0, nan]),
        ("accuracy", [2 / 3, 0, nan, nan]),
        ("precision", [2 / 3, 0, 0, nan]),
        ("pixel_fraction", [0.75, 0.25, 0, 0]),
    ):
        torch.testing.assert_close(scores[name], torch.tensor(values).double(), equal_nan=True)
    means = {"miou": 0.5 / 3, "mean_accuracy": 1 / 3, "mean_precision": 2 / 9, "pixel_accuracy": 0.5}
    for name, value in means.items():
        assert scores[name].item() == pytest.approx(value), name


def test_logits_and_small_integers_are_accepted():
    logits, target = torch.randn(3, C, 5, 6), torch.randint(C, (3, 5, 6), dtype=torch.uint8)
    first, second = SegmentationScores(C), SegmentationScores(C)
    first.update(logits, target)
    second.update(logits.argmax(1).to(torch.uint8), target.long())
    assert torch.equal(first.confusion, second.confusion)
    assert first.confusion.sum() == 3 * 5 * 6


def test_ignored_classes_may_be_one_of_the_labels():
    predictions, target = draw(3)
    target[target == 255] = 0
    scores, metric = scores_of_batches(predictions, target, ignore_index=0)
    assert metric.confusion[0].sum() == 0
    assert metric.confusion.sum() == (target != 0).sum()
    assert scores["accuracy"][0].isnan()


def test_without_valid_pixels_all_scores_are_nan():
    metric = SegmentationScores(C, 255)
    metric.update(torch.zeros(2, 3, 3, dtype=torch.int64), torch.full((2, 3, 3), 255))
    assert all(value.isnan().all() for value in metric.compute().values())


@pytest.mark.parametrize(
    ("predictions", "target", "message"),
    [
        ([[0, 1]], [[0, 7]], "target must hold classes from 0 to 6"),
        ([[0, 1]], [[0, -1]], "target must hold classes from 0 to 6"),
        ([[0, 7]], [[0, 1]], "predictions must hold classes from 0 to 6"),
        ([[0, 1]], [[0, 1, 2]], "must have the same shape"),
        ([[0, 1]], [[0.0, 1.0]], "target must hold classes as integers, got torch.float32"),
        ([[True, False]], [[0, 1]], "predictions must hold classes as integers, got torch.bool"),
    ],
)
def test_bad_input(predictions, target, message):
    with pytest.raises(ValueError, match=message):
        SegmentationScores(C, 255).update(torch.tensor(predictions), torch.tensor(target))


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        SegmentationScores(1)


def test_flat_scores_have_a_key_for_each_number():
    scores, _ = scores_of_batches(*draw(4))
    flat = flat_scores(scores, "abcdefg")
    assert len(flat) == len(MEANS) + 3 * C
    assert flat["iou/c"] == scores["iou"][2]
    assert flat["precision/g"] == scores["precision"][6]
