import math

import numpy as np
import pytest
import torch

from lightning_recall.benchmarks.coverage import POPULATIONS, coverage
from lightning_recall.metrics import RetrievalScores, class_bootstrap, class_bootstraps, score_intervals
from lightning_recall.metrics.revisited import GroundTruth, RevisitedMAP


def random_scores(num_classes=30, seed=0):
    """Scores (Q,) of classes that differ, and labels (Q,) in random order."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), generator.integers(1, 12, num_classes))
    labels = generator.permutation(labels)
    scores = generator.uniform(size=num_classes)[labels] * generator.uniform(size=len(labels))
    return torch.from_numpy(scores), torch.from_numpy(labels)


UNEQUAL = random_scores()[1]


def interval_by_loops(scores, labels, num_samples, confidence, seed, symmetric):
    """The studentised bootstrap of sum / count, class by class and resample by resample."""
    groups = [scores[labels == label] for label in np.unique(labels)]
    groups = sorted((len(group), group.sum()) for group in groups)  # as the function sorts them

    def mean_and_error(drawn):
        count, total = sum(n for n, _ in drawn), sum(s for _, s in drawn)
        mean = total / count
        return mean, math.sqrt(sum((s - mean * n) ** 2 for n, s in drawn)) / count

    mean, error = mean_and_error(groups)
    generator, t = np.random.default_rng(seed), []
    for _ in range(num_samples):
        drawn = generator.integers(0, len(groups), len(groups))
        resampled, resampled_error = mean_and_error([groups[i] for i in drawn])
        t.append((resampled - mean) / resampled_error)
    tail = int((num_samples + 1) * (1 - confidence) / 2)
    if symmetric:
        width = sorted(map(abs, t))[num_samples - 2 * tail]
        return mean - width * error, mean + width * error
    t = sorted(t)
    return mean - t[num_samples - tail] * error, mean - t[tail - 1] * error


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_equals_a_loop_over_resamples(differences, confidence):
    scores, labels = random_scores()
    interval = class_bootstrap(scores, labels, 400, confidence, seed=3, differences=differences)
    lower, upper = interval_by_loops(scores.numpy(), labels.numpy(), 400, confidence, 3, differences)
    assert interval.mean == pytest.approx(scores.mean().item(), abs=1e-9)
    assert (interval.lower, interval.upper) == pytest.approx((lower, upper), abs=1e-9)
    assert interval.reason == ""


@pytest.mark.parametrize("population", [1, 7])
def test_intervals_cover_the_truth(population):
    shown, covered = coverage(POPULATIONS[population], 100, 600, seed=1)
    assert shown > 570
    assert 0.93 <= covered / shown <= 0.97


def test_the_order_of_queries_and_the_numbers_of_classes_do_not_matter():
    scores, labels = random_scores()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    expected = class_bootstraps({"a": scores, "b": scores**2}, labels)
    found = class_bootstraps({"a": scores[order], "b": scores[order] ** 2}, labels[order] * 7919 % 10_007)
    assert found == expected  # to the last bit
    assert class_bootstrap(scores, labels) == expected["a"]


def test_other_seeds_give_slightly_other_intervals():
    scores, labels = random_scores()
    first, second = (class_bootstrap(scores, labels, seed=seed) for seed in (0, 1))
    assert 0 < abs(first.lower - second.lower) < 0.3 * (first.upper - first.lower)


def test_classes_are_resampled_and_not_queries():
    """Copies of every query tell nothing new about other classes."""
    scores, labels = random_scores()
    once, often = class_bootstrap(scores, labels), class_bootstrap(scores.repeat(9), labels.repeat(9))
    assert (often.lower, often.upper) == pytest.approx((once.lower, once.upper), abs=1e-9)


def test_queries_without_a_score_do_not_count():
    scores, labels = random_scores()
    has_score = torch.rand(len(labels), generator=torch.Generator().manual_seed(2)) < 0.7
    some = class_bootstrap(scores.where(has_score, torch.nan), labels)
    assert some.mean == pytest.approx(scores[has_score].mean().item(), abs=1e-9)
    assert some.lower < some.mean < some.upper
    kept = torch.isin(labels, labels[has_score].unique())
    assert some.num_classes == len(labels[kept].unique())
    nothing = class_bootstrap(torch.full_like(scores, torch.nan), labels)
    assert math.isnan(nothing.mean)
    assert nothing.reason == "0 classes, fewer than 20"


def test_intervals_stay_within_the_limits():
    labels = torch.arange(400) // 16
    scores = ((labels % 5 > 0) | (torch.arange(400) % 16 > 13)).double()
    interval = class_bootstrap(scores, labels, confidence=0.999)
    assert interval.reason == ""
    assert 0 <= interval.lower < interval.mean < interval.upper <= 1
    below = class_bootstrap(-scores, labels, differences=True)
    assert below.upper < 0
    assert below.above_zero == 0


@pytest.mark.parametrize(
    ("scores", "labels", "differences", "reason"),
    [
        (torch.rand(20), torch.zeros(20).long(), False, "1 class, fewer than 20"),
        (torch.rand(38), torch.arange(38) // 2, False, "19 classes, fewer than 20"),
        (torch.full((len(UNEQUAL),), 0.3), UNEQUAL, False, "all classes have the same score"),
        (torch.ones(60), torch.arange(60) // 2, False, "all classes have the same score"),
        (
            (torch.arange(60) > 3).float(),
            torch.arange(60) // 2,
            False,
            "only 2 of 30 classes below the mean, fewer than 5",
        ),
        (
            (torch.arange(60) < 3).float(),
            torch.arange(60) // 2,
            False,
            "only 2 of 30 classes above the mean, fewer than 5",
        ),
        (
            (torch.arange(60) < 18).float(),
            torch.arange(60) // 2,
            True,
            "the models differ in 9 of 30 classes, fewer than 10",
        ),
    ],
)
def test_too_few_classes_have_no_interval(scores, labels, differences, reason):
    interval = class_bootstrap(scores, labels, differences=differences)
    assert interval.reason == reason
    assert interval.mean == pytest.approx(scores.mean().item(), abs=1e-6)
    assert math.isnan(interval.lower)
    assert math.isnan(interval.upper)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 99}, "num_samples must be at least 100, got 99"),
        ({"confidence": 95.0}, "confidence must be between 0 and 1, such as 0.95, got 95.0"),
        ({"scores": {}}, "scores must hold at least one score"),
        ({"scores": {"a": torch.ones(3)}}, r"a must be floating point, of shape \(4,\) as the labels, got .* \(3,\)"),
        ({"scores": {"a": torch.ones(4).long()}}, r"a must be floating point, .* got torch.int64"),
        ({"scores": {"a": torch.tensor([0.0, 1.0, 1.5, 0.0])}}, "a must be between 0 and 1, got 1.5"),
        ({"scores": {"a": torch.tensor([0.0, 1.0, -0.5, 0.0])}}, "a must be between 0 and 1, got -0.5"),
        ({"labels": torch.ones(4)}, "labels must be integers"),
        ({"labels": [1, 2, 3, 4]}, "labels must be a tensor"),
    ],
)
def test_invalid_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        class_bootstraps(**{"scores": {"a": torch.ones(4)}, "labels": torch.arange(4), **change})


def test_intervals_of_a_search_are_those_of_its_queries():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) // 4
    embeddings = torch.randn(30, 8, generator=generator)[labels] + torch.randn(120, 8, generator=generator)
    metric = RetrievalScores(("recall", "map"), ks=(1,))
    metric.update(embeddings, labels, is_query=torch.arange(120) % 4 > 0)
    result = metric.search()
    assert len(result.queries) == 90
    assert score_intervals(result) == class_bootstraps(result.scores, labels[result.queries])
    assert score_intervals(result, seed=1) != score_intervals(result)


def test_landmarks_have_no_intervals():
    metric = RevisitedMAP([GroundTruth(easy=[1], hard=[], junk=[])], ks=(1,))
    metric.update(torch.eye(3), torch.zeros(3).long(), torch.arange(3))
    assert score_intervals(metric.search()) == {}
