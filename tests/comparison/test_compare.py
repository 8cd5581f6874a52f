import numpy as np
import pytest
import torch

from lightning_recall.comparison import compare
from lightning_recall.comparison.compare import ScoreDifference
from lightning_recall.comparison.pairing import select
from lightning_recall.metrics import Interval, RetrievalScores, class_bootstrap


def scores_of(each, is_query=None):
    metric = RetrievalScores(("recall", "map@r"), ks=(1, 4))
    metric.update(each.embeddings, each.labels, is_query=is_query)
    return metric.search().scores


def test_scores_are_those_of_each_model_and_of_their_differences(two_sets):
    first, second = two_sets
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    comparison = compare(first, select(second, order), ks=(1, 4))
    scores = scores_of(first), scores_of(second)
    assert list(comparison.scores) == ["recall@1", "recall@4", "map@r"]
    for name, each in comparison.scores.items():
        assert each.first == class_bootstrap(scores[0][name], first.labels)
        assert each.second == class_bootstrap(scores[1][name], first.labels)
        difference = scores[1][name] - scores[0][name]
        assert each.difference == class_bootstrap(difference, first.labels, differences=True)
        assert each.difference.mean == pytest.approx(each.second.mean - each.first.mean, abs=1e-9)
    assert comparison.scores["map@r"].verdict == "B is better"
    assert not comparison.is_same_model


def test_the_order_of_the_models_is_a_sign(two_sets):
    forward, backward = compare(*two_sets), compare(*reversed(two_sets))
    for name, each in forward.scores.items():
        assert backward.scores[name].difference.mean == pytest.approx(-each.difference.mean, abs=1e-12)
        assert backward.scores[name].first == each.second
    assert backward.scores["map@r"].verdict == "A is better"
    assert backward.changes.num_gained == forward.changes.num_lost > 0


def test_classes_are_sorted_by_their_difference(two_sets):
    is_query = torch.arange(150) >= 35
    first, second = (each._replace(is_query=is_query) for each in two_sets)
    comparison = compare(first, second, scores=("map@r", "recall"), ks=(1,))
    scores = [scores_of(each, is_query) for each in two_sets]
    labels = first.labels[is_query]
    assert comparison.main_score == "map@r"
    assert sorted(each.label for each in comparison.classes) == sorted(labels.unique().tolist())
    for each in comparison.classes:
        rows = labels == each.label
        assert (each.name, each.num_queries) == (f"bird {each.label}", rows.sum())
        for name in ("map@r", "recall@1"):
            assert each.first[name] == pytest.approx(scores[0][name][rows].mean().item())
            assert each.second[name] == pytest.approx(scores[1][name][rows].mean().item())
        right = [part["recall@1"][rows].bool() for part in scores]
        assert (each.gained, each.lost) == ((right[1] & ~right[0]).sum(), (right[0] & ~right[1]).sum())
    differences = [each.difference("map@r") for each in comparison.classes]
    assert differences == sorted(differences)
    assert differences[0] < 0 < differences[-1]


def test_the_paired_interval_is_narrower(two_sets):
    each = compare(*two_sets).scores["map@r"]
    widths = [part.upper - part.lower for part in each]
    assert widths[2] < 0.8 * np.hypot(widths[0], widths[1])


def test_names_come_from_the_set_that_has_them(two_sets):
    first, second = two_sets
    for sets in ((first._replace(classes=None), second), (first, second._replace(classes=None))):
        assert compare(*sets).classes[0].name.startswith("bird ")
    nameless = [each._replace(classes=None) for each in two_sets]
    assert compare(*nameless).classes[0].name == ""


def test_the_same_weights_are_noticed(two_sets):
    first, second = two_sets
    copy = first._replace(path=second.path)
    comparison = compare(first, copy)
    assert comparison.is_same_model
    assert {each.verdict for each in comparison.scores.values()} == {
        "not known: the models differ in 0 of 30 classes, fewer than 10"
    }
    assert not compare(first._replace(model={}), copy._replace(model={})).is_same_model


def test_verdicts():
    known = Interval(0.5, 0.4, 0.6, 1.0, 40)

    def verdict(lower, upper, reason=""):
        return ScoreDifference(known, known, Interval(0.0, lower, upper, 0.5, 40, reason)).verdict

    assert verdict(0.01, 0.02) == "B is better"
    assert verdict(-0.02, -0.01) == "A is better"
    assert verdict(-0.01, 0.01) == verdict(0.0, 0.01) == "no difference is shown"
    assert verdict(np.nan, np.nan, "7 classes, fewer than 20") == "not known: 7 classes, fewer than 20"


def test_one_class_has_no_interval(two_sets):
    first, second = (select(each, (each.labels == 100).nonzero()[:, 0]) for each in two_sets)
    comparison = compare(first, second)
    assert comparison.scores["recall@1"].verdict == "not known: 1 class, fewer than 20"
    assert comparison.changes.both_right == 5


def test_without_a_positive_there_is_nothing_to_compare(two_sets):
    singles = (each._replace(labels=torch.arange(150)) for each in two_sets)
    with pytest.raises(ValueError, match="None of the 150 items has a same-class item in the gallery"):
        compare(*singles)
    with pytest.raises(ValueError, match="scores must be distinct names"):
        compare(*two_sets, scores=("accuracy",))
    with pytest.raises(ValueError, match="ks must contain"):
        compare(*two_sets, ks=(0,))
