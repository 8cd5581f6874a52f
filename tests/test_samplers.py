from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_recall import ClassBalancedBatchSampler
from lightning_recall.samplers import most_batches


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=12),
    samples_per_class=st.integers(2, 4),
    num_classes=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_batches_are_balanced_and_use_an_image_once(sizes, samples_per_class, num_classes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    if sum(size >= samples_per_class for size in sizes) < num_classes:
        with pytest.raises(ValueError, match=r"Lower batch_size|lower samples_per_class"):
            ClassBalancedBatchSampler(labels, num_classes * samples_per_class, samples_per_class, small_classes="drop")
        return
    sampler = ClassBalancedBatchSampler(
        labels, num_classes * samples_per_class, samples_per_class, seed, small_classes="drop"
    )
    batches = list(sampler)
    assert len(batches) == len(sampler) >= 1
    for batch in batches:
        assert sorted(Counter(labels[batch]).values()) == [samples_per_class] * num_classes
        assert (labels[batch].reshape(num_classes, samples_per_class).std(1) == 0).all()  # side by side
    used = [row for batch in batches for row in batch]
    assert len(used) == len(set(used))


def test_an_epoch_uses_all_that_the_classes_allow():
    sampler = ClassBalancedBatchSampler(np.repeat(np.arange(30), 8), batch_size=20, samples_per_class=4)
    assert len(sampler) == 30 * 2 // 5
    assert sorted(row for batch in sampler for row in batch) == list(range(240))


@pytest.mark.parametrize(
    ("groups", "num_classes", "expected"), [([1, 1, 1], 2, 1), ([5, 1, 1], 2, 2), ([9, 9], 2, 9), ([3, 3, 3], 2, 4)]
)
def test_most_batches(groups, num_classes, expected):
    assert most_batches(np.array(groups), num_classes) == expected


def test_epochs_differ_and_can_be_repeated():
    labels = torch.arange(40) // 4
    sampler = ClassBalancedBatchSampler(labels, 8, 2, seed=5)
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(1)
    assert list(sampler) == second
    again = ClassBalancedBatchSampler(labels, 8, 2, seed=5)
    assert list(again) == first
    assert list(ClassBalancedBatchSampler(labels, 8, 2, seed=6)) != first
    assert sampler.sampler is sampler  # where Lightning looks for set_epoch


def test_images_of_a_class_are_spread_over_the_epoch():
    labels = np.repeat(np.arange(60), 8)
    batches = list(ClassBalancedBatchSampler(labels, 12, 2))  # 40 batches, each class in four
    at = [[b for b, batch in enumerate(batches) if c in labels[batch]] for c in range(60)]
    assert np.mean([places[-1] - places[0] for places in at]) > 15  # three, were they dealt one after the other


def test_classes_meet_other_classes():
    """Over the epochs every pair of classes stands in a batch together."""
    labels = np.repeat(np.arange(8), 4)
    sampler = ClassBalancedBatchSampler(labels, 8, 2)
    pairs = {(a, b) for _ in range(60) for batch in sampler for a in labels[batch] for b in labels[batch] if a < b}
    assert len(pairs) == 28


def test_without_reshuffling_every_pass_is_the_first():
    sampler = ClassBalancedBatchSampler(torch.arange(40) // 4, 8, 2, reshuffle=False)
    first = list(sampler)
    sampler.set_epoch(7)
    assert list(sampler) == list(sampler) == first == list(ClassBalancedBatchSampler(torch.arange(40) // 4, 8, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_class": 1}, "samples_per_class must be at least 2"),
        ({"batch_size": 10}, "multiple of samples_per_class=4"),
        ({"batch_size": 4}, "at least 2 classes"),
        ({"batch_size": 0}, "got 0"),
        ({"batch_size": 400}, "Lower batch_size to 40 or less"),
        ({"labels": [0] * 9 + [1], "small_classes": "drop"}, "only 1 of 2 have samples_per_class=4 images"),
        ({"labels": torch.rand(40)}, "labels must be integers"),
        ({"labels": [0, 1, 1, 1, 1, 2, 2, 2, 2]}, "1 of 3 classes have fewer than samples_per_class=4 images"),
    ],
)
def test_impossible_requests_say_what_to_change(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassBalancedBatchSampler(
            **{"labels": np.repeat(np.arange(10), 4), "batch_size": 8, "samples_per_class": 4, **arguments}
        )
