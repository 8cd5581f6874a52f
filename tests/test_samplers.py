import hashlib
from collections import Counter
from heapq import heapify, heappop, heappush
from itertools import chain, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import ClassBalancedBatchSampler
from lightning_recall.samplers import max_num_batches
from lightning_recall.samplers.pack_counts import PackCounts
from lightning_recall.samplers.published import PublishedEpoch, published_epoch, schedule_classes
from lightning_recall.samplers.super_classes import draw_batches

SIZES = st.lists(st.integers(1, 12), min_size=3, max_size=12)
OPTIONS = st.fixed_dictionaries(
    {
        "small_classes": st.sampled_from(["drop", "repeat"]),
        "tail": st.sampled_from(["drop", "fill"]),
        "few_classes": st.sampled_from(["error", "repeat"]),
        "super_classes": st.sampled_from([None, 1, 2]),
    }
)
MODES = [
    {},
    {"tail": "fill"},
    {"small_classes": "repeat"},
    {"few_classes": "repeat", "batch_size": 36},
    {"epoch_order": "published"},
    {"super_classes": 2},
    {"super_classes": 1, "tail": "fill", "small_classes": "repeat"},
]


def labels_of(sizes, seed=0):
    """(N, 2): classes 0, 7, 14, ... in three super-classes, in random order."""
    classes = np.repeat(np.arange(len(sizes)) * 7, sizes)
    return np.random.default_rng(seed).permutation(np.stack([classes, classes % 3 - 1], axis=1))


def sampler_of(mode):
    """Classes of 3 to 9 images, so that an epoch of any mode leaves images out."""
    settings = {"batch_size": 16, "samples_per_class": 4, "small_classes": "drop", "seed": 5, **mode}
    return ClassBalancedBatchSampler(labels_of([3, 9, 5, 4, 7, 8, 9, 6]), **settings)


def can_fill(sizes, packs_per_batch, samples_per_class, small_classes, few_classes):
    usable = [size for size in sizes if size >= samples_per_class or small_classes == "repeat"]
    if len(usable) >= packs_per_batch:
        return len(usable) >= 2
    different = sum(size // samples_per_class for size in usable)
    return len(usable) >= 2 and few_classes == "repeat" and (small_classes == "repeat" or different >= packs_per_batch)


def greedy_length(packs, packs_per_batch):
    """Number of batches if each draws the classes with most packs left."""
    heap, length = [-count for count in packs], 0
    heapify(heap)
    while len(heap) >= packs_per_batch:
        taken = [heappop(heap) for _ in range(packs_per_batch)]
        for count in taken:
            if count < -1:
                heappush(heap, count + 1)
        length += 1
    return length


@settings(max_examples=400, deadline=None)
@given(
    sizes=SIZES,
    samples_per_class=st.integers(2, 4),
    packs_per_batch=st.integers(2, 7),
    seed=st.integers(0, 99),
    options=OPTIONS,
)
def test_an_epoch_is_what_its_options_say(sizes, samples_per_class, packs_per_batch, seed, options):
    labels = labels_of(sizes, seed)
    usable = {7 * c: n for c, n in enumerate(sizes) if n >= samples_per_class or options["small_classes"] == "repeat"}
    if (options["super_classes"] or 0) > len({label % 3 for label in usable}):
        options["super_classes"] = None
    arguments = (labels, packs_per_batch * samples_per_class, samples_per_class, seed)
    if not can_fill(sizes, packs_per_batch, samples_per_class, options["small_classes"], options["few_classes"]):
        with pytest.raises(ValueError, match=r"Lower batch_size|lower samples_per_class"):
            ClassBalancedBatchSampler(*arguments, **options)
        return
    sampler = ClassBalancedBatchSampler(*arguments, **options)
    length, batches = len(sampler), np.array(list(sampler))
    assert len(batches) == length >= 1
    for batch in batches:
        check_batch(labels[batch, 0].reshape(packs_per_batch, samples_per_class), batch, usable, options)
    times = np.bincount(batches.ravel(), minlength=len(labels))  # how often an epoch draws each image
    for label in set(labels[:, 0]) - set(usable):
        assert (times[labels[:, 0] == label] == 0).all()
    check_coverage(
        {label: times[labels[:, 0] == label] for label in usable}, length, packs_per_batch, arguments[2], options
    )


def check_batch(packs, batch, usable, options):
    """Labels of the packs (packs_per_batch, samples_per_class), and the indices of the batch."""
    packs_per_batch, samples_per_class = packs.shape
    assert (packs == packs[:, :1]).all()  # images of a class are consecutive
    in_batch = Counter(packs[:, 0].tolist())
    assert set(in_batch) <= set(usable)
    assert sum(packs[1:, 0] != packs[:-1, 0]) == len(in_batch) - 1  # and so are packs of a class
    most = max(in_batch.values())
    different = np.array([max(size // samples_per_class, 1) for size in usable.values()])
    if len(usable) >= packs_per_batch:
        assert most == 1
    elif different.sum() >= packs_per_batch:
        assert np.minimum(different, most - 1).sum() < packs_per_batch  # the smallest maximum that fills a batch
        assert len(in_batch) >= 2
    counts = Counter(batch.tolist())
    repeats = Counter()
    for position, index in enumerate(batch.tolist()):
        label = int(packs.ravel()[position])
        repeats[label] = max(repeats[label], counts[index])
    for label, count in in_batch.items():  # images as often as each other, or once more
        assert repeats[label] == -(-count * samples_per_class // usable[label])
    if options["small_classes"] == "drop":
        assert max(counts.values()) == 1


def check_coverage(times, length, packs_per_batch, samples_per_class, options):
    """Checks how often each image is drawn; `times` maps each class to its counts (n,)."""
    different = {label: max(len(drawn) // samples_per_class, 1) for label, drawn in times.items()}
    drawn_packs = {label: drawn.sum() // samples_per_class for label, drawn in times.items()}
    repeated = sum(different.values()) < packs_per_batch
    assert all(drawn.max() - drawn.min() <= 1 for drawn in times.values())
    if options["tail"] == "drop" and not repeated:
        assert all(drawn_packs[label] <= different[label] for label in times)
        if options["super_classes"]:
            assert sum(drawn_packs[label] < different[label] for label in times) < packs_per_batch
        elif len(times) >= packs_per_batch:
            assert length == greedy_length(different.values(), packs_per_batch)
    if options["tail"] == "fill":
        assert min(drawn.min() for drawn in times.values()) >= 1
        packs = {label: -(-len(drawn) // samples_per_class) for label, drawn in times.items()}
        if len(times) >= packs_per_batch and not options["super_classes"]:
            assert length == max(*packs.values(), -(-sum(packs.values()) // packs_per_batch))
            passes = [drawn_packs[label] / packs[label] for label in times if drawn_packs[label] < length]
            assert not passes or max(drawn_packs[c] / packs[c] for c in times) <= np.floor(min(passes)) + 1


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=25), num_classes=st.integers(2, 6), seed=st.integers(0, 9)
)
def test_published_schedule_equals_a_loop(sizes, num_classes, seed):
    order = np.random.default_rng(seed).permutation(len(sizes)) * 3
    packs = np.array(sizes)
    starts, length = schedule_classes(packs, num_classes)
    epoch = PublishedEpoch(order, starts, starts + packs, length)
    batches = [epoch.batch(number) for number in range(length)]
    expected = published_by_loops(dict(zip(order.tolist(), sizes, strict=True)), 1, num_classes)
    assert [classes.tolist() for classes, _ in batches] == expected
    for label in order:  # its packs in order
        numbers = [n for classes, numbers in batches for c, n in zip(classes, numbers, strict=True) if c == label]
        assert numbers == list(range(len(numbers)))


def published_by_loops(images, samples_per_class, num_classes):
    """Classes of each batch, given how many images each class has, in the order of the classes."""
    left, batches = dict(images), []
    while True:
        batch = []
        for label in left:
            if left[label] >= samples_per_class and len(batch) < num_classes:
                batch.append(label)
                left[label] -= samples_per_class
        if len(batch) < num_classes:
            return batches
        batches.append(batch)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 14), min_size=2, max_size=5), num_classes=st.integers(2, 3), seed=st.integers(0, 99)
)
def test_published_epochs_are_those_of_some_class_order(sizes, num_classes, seed):
    labels = labels_of(sizes, seed)[:, 0]
    if sum(size >= 3 for size in sizes) < num_classes:
        return
    sampler = ClassBalancedBatchSampler(labels, num_classes * 3, 3, seed, "drop", epoch_order="published")
    for _ in range(3):
        batches = list(sampler)
        used = [index for batch in batches for index in batch]
        assert len(used) == len(set(used))
        classes = Counter(tuple(labels[batch][::3]) for batch in batches)
        assert all((labels[batch].reshape(-1, 3).std(1) == 0).all() for batch in batches)
        orders = permutations(zip(range(0, 7 * len(sizes), 7), sizes, strict=True))
        assert any(classes <= Counter(map(tuple, published_by_loops(order, 3, num_classes))) for order in orders)


@pytest.mark.parametrize("sizes", [[40, 4, 4, 4, 12], [30, 28, 9, 8, 8, 8, 5]])
def test_published_epochs_have_one_length(sizes):
    """Lightning plans all epochs with the length of the first, and does not validate after shorter ones."""
    packs, rng = np.array(sizes) // 4, np.random.default_rng(5)
    lengths = [
        schedule_classes(rng.permutation(packs), 3)[1] for _ in range(100)
    ]  # number of batches of 100 random orders
    assert len(set(lengths)) > 1
    expected = len(ClassBalancedBatchSampler(labels_of(sizes), 12, 4, epoch_order="published"))
    assert np.mean(np.array(lengths) >= expected) >= 0.8
    for seed in range(4):
        sampler = ClassBalancedBatchSampler(labels_of(sizes), 12, 4, seed, epoch_order="published")
        assert [(len(sampler), len(list(sampler))) for _ in range(30)] == [(expected, expected)] * 30


def test_published_orders_of_too_few_batches_are_redrawn():
    packs = np.array([10, 1, 1, 1, 3])
    lengths = [published_epoch(packs, 3, np.random.default_rng(seed), min_length=2).length for seed in range(50)]
    assert min(lengths) == 2
    assert min(published_epoch(packs, 3, np.random.default_rng(seed)).length for seed in range(50)) == 1


@settings(max_examples=150, deadline=None)
@given(
    packs=st.lists(st.integers(0, 6), min_size=4, max_size=20),
    per_batch=st.integers(1, 2),
    packs_per_batch=st.integers(2, 6),
    num_super_classes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_batches_come_from_as_many_super_classes_as_requested(
    packs, per_batch, packs_per_batch, num_super_classes, seed
):
    rng = np.random.default_rng(seed)
    super_class_ids = rng.permutation(np.arange(len(packs)) % 4)
    left = np.array(packs)
    most = np.minimum(left, per_batch)
    num_super_classes = min(num_super_classes, packs_per_batch)
    for batch in draw_batches(PackCounts(left.copy(), most), super_class_ids, num_super_classes, packs_per_batch, rng):
        available = np.bincount(super_class_ids, np.minimum(left, most))  # (4,) packs that the batch may draw of each
        counts = np.bincount(super_class_ids[batch], minlength=4)
        drawn = np.flatnonzero(counts)
        assert len(drawn) >= min(num_super_classes, (available > 0).sum())
        if len(drawn) > num_super_classes:  # fewer would not have filled it
            assert available[drawn].sum() - available[drawn].max() < packs_per_batch
            assert (counts[drawn] < available[drawn]).sum() <= 1
        else:
            assert all(counts[s] == available[s] or counts[s] >= counts.max() - 1 for s in drawn)
        assert (np.bincount(batch, minlength=len(left)) <= most).all()
        left = left - np.bincount(batch, minlength=len(left))
        assert left.min() >= 0
    assert np.minimum(left, most).sum() < packs_per_batch


def test_super_classes_and_classes_are_drawn_in_proportion_to_their_remaining_packs():
    left, super_class_ids = np.array([9, 3, 3, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 1])
    counts = PackCounts(left, np.ones_like(left))
    first = [draw_batches(counts, super_class_ids, 1, 2, np.random.default_rng(seed))[0] for seed in range(800)]
    assert np.mean([super_class_ids[batch[0]] == 0 for batch in first]) == pytest.approx(0.75, abs=0.05)
    # drawn first with probability 9/15, else second with 9/12
    in_batch = np.mean([0 in batch for batch in first if super_class_ids[batch[0]] == 0])
    assert in_batch == pytest.approx(0.6 + 0.4 * 0.75, abs=0.05)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_epochs_differ_and_can_be_repeated(mode):
    sampler, again = sampler_of(mode), sampler_of(mode)
    epochs = [(len(sampler), list(sampler)) for _ in range(3)]
    assert epochs[0][1] != epochs[1][1] != epochs[2][1]
    for epoch in (2, 0, 1):
        again.set_epoch(epoch)
        assert list(again) == epochs[epoch][1]
        assert len(epochs[epoch][1]) == epochs[epoch][0]
    assert list(sampler_of({**mode, "seed": 6})) != epochs[0][1]
    fixed = sampler_of({**mode, "reshuffle": False})
    assert [list(fixed), list(fixed)] == [epochs[0][1]] * 2


HASHES = (
    *("ddb4eb76a3e9aa2a", "9a7b82548e43475f", "d0b520eb52976d6b", "bb4262414590e3cf"),
    *("661c84501d3cadfd", "d3544a7bea9a244f", "0754f5a13d4b610f"),
)


@pytest.mark.parametrize(("mode", "expected"), list(zip(MODES, HASHES, strict=True)), ids=str)
def test_batches_are_those_of_earlier_releases(mode, expected):
    """Trainings that were started with earlier releases resume with the same batches."""
    sampler = sampler_of(mode)
    epochs = [list(sampler) for _ in range(3)]
    assert hashlib.sha256(repr(epochs).encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3, 16])
def test_slices_of_the_processes_make_up_every_batch(mode, world_size):
    slices = []
    for rank in range(world_size):
        sampler = sampler_of(mode)
        sampler.shard = rank, world_size
        slices.append(list(sampler))
    assert [list(chain(*parts)) for parts in zip(*slices, strict=True)] == list(sampler_of(mode))
    sizes = {len(part) for batches in slices for part in batches}
    assert max(sizes) - min(sizes) <= 1


def test_super_classes_without_usable_classes_are_not_counted():
    labels = [[0, 0], [0, 0], [1, 0], [1, 0], [2, 1]]
    with pytest.raises(ValueError, match="super_classes must be None or from 1 to 1"):
        ClassBalancedBatchSampler(labels, 4, 2, small_classes="drop", super_classes=2)
    assert len(ClassBalancedBatchSampler(labels, 4, 2, small_classes="repeat", super_classes=2)) == 1


def test_super_classes_of_the_labels_are_ignored_without_the_option():
    labels = np.array([[0, 0], [0, 1], [1, 0], [1, 0], [2, 1], [2, 1]])
    assert list(ClassBalancedBatchSampler(labels, 4, 2)) == list(ClassBalancedBatchSampler(labels[:, 0], 4, 2))
    with pytest.raises(ValueError, match="Class 0 belongs to super-classes 0 and 1"):
        ClassBalancedBatchSampler(labels, 4, 2, super_classes=1)
    with pytest.raises(ValueError, match=r"needs labels of shape \(N, 2\)"):
        ClassBalancedBatchSampler(labels[:, 0], 4, 2, super_classes=1)


def test_the_batches_of_two_super_classes():
    """Eight super-classes of ten classes each: most batches draw five classes from each of two."""
    classes = np.repeat(np.arange(80), 8)
    sampler = ClassBalancedBatchSampler(np.stack([classes, classes // 10], 1), 40, 4, super_classes=2)
    batches = [Counter((classes[batch][::4] // 10).tolist()) for batch in sampler]
    assert len(batches) >= 15
    assert sum(sorted(batch.values()) == [5, 5] for batch in batches) >= 10
    assert len({tuple(sorted(batch)) for batch in batches}) >= 8


def test_a_class_of_one_image_is_repeated():
    batches = list(ClassBalancedBatchSampler([0, 1, 1, 1], 8, 4, small_classes="repeat"))
    (counts,) = (Counter(batch) for batch in batches)
    assert counts[0] == 4
    assert sorted(counts[index] for index in (1, 2, 3)) == [1, 1, 2]


def test_few_classes_fill_a_batch_as_evenly_as_their_sizes_allow():
    labels = np.repeat([0, 1, 2], [12, 4, 4])
    (batch,) = ClassBalancedBatchSampler(labels, 20, 4, few_classes="repeat")
    assert sorted(batch) == list(range(20))
    batches = list(ClassBalancedBatchSampler(labels, 40, 4, small_classes="repeat", few_classes="repeat"))
    assert [Counter(batch) for batch in batches] == [Counter([*range(20), *range(20)])]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(4, 25), min_size=2, max_size=4), samples_per_class=st.integers(2, 4), data=st.data())
def test_packs_of_a_class_in_a_batch_have_no_common_image(sizes, samples_per_class, data):
    packs_per_batch = data.draw(st.integers(2, sum(size // samples_per_class for size in sizes)))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    batch_size = packs_per_batch * samples_per_class
    sampler = ClassBalancedBatchSampler(labels, batch_size, samples_per_class, tail="fill", few_classes="repeat")
    batches = list(sampler)
    assert all(len(set(batch)) == batch_size for batch in batches)
    assert set(chain(*batches)) == set(range(len(labels)))


def test_fill_draws_what_is_missing_evenly():
    sampler = ClassBalancedBatchSampler(np.repeat(np.arange(10), 6), 12, 4, tail="fill")
    assert len(sampler) == 7  # 20 packs, three in a batch
    times = np.bincount(np.ravel(list(sampler)), minlength=60)
    assert times.min() == 1
    assert times.max() == 2


@pytest.mark.parametrize("seed", range(4))
def test_default_epochs_equal_loops(seed):
    """Trainings that were started with earlier releases resume with the same batches."""
    labels = labels_of([9, 3, 5, 12, 8, 8, 4], seed)[:, 0]
    sampler = ClassBalancedBatchSampler(labels, 9, 3, seed)
    rng = np.random.default_rng((seed, 2))
    keys, indices, sequence = iter(rng.random(len(labels))), {}, []
    for label in np.unique(labels):
        indices[label] = [i for _, i in sorted((next(keys), i) for i in np.flatnonzero(labels == label))]
    for label in rng.permutation(np.unique(labels)):
        packs = [indices[label][i : i + 3] for i in range(0, len(indices[label]) - 2, 3)]
        sequence += packs[: len(sampler)]
    expected = [list(chain(*sequence[b :: len(sampler)][:3])) for b in rng.permutation(len(sampler))]
    sampler.set_epoch(2)
    assert list(sampler) == expected


def test_an_epoch_uses_every_image_if_the_packs_fill_the_batches():
    sampler = ClassBalancedBatchSampler(np.repeat(np.arange(30), 8), batch_size=20, samples_per_class=4)
    assert len(sampler) == 30 * 2 // 5
    assert sorted(index for batch in sampler for index in batch) == list(range(240))


@pytest.mark.parametrize(
    ("packs", "num_classes", "expected"), [([1, 1, 1], 2, 1), ([5, 1, 1], 2, 2), ([9, 9], 2, 9), ([3, 3, 3], 2, 4)]
)
def test_most_batches(packs, num_classes, expected):
    assert max_num_batches(np.array(packs), num_classes) == expected


def test_lightning_finds_set_epoch():
    sampler = ClassBalancedBatchSampler(torch.arange(40) // 4, 8, 2)
    assert sampler.sampler is sampler  # where it looks


def test_images_of_a_class_are_spread_over_the_epoch():
    labels = np.repeat(np.arange(60), 8)
    batches = list(ClassBalancedBatchSampler(labels, 12, 2))  # 40 batches, each class in four
    positions = [[b for b, batch in enumerate(batches) if c in labels[batch]] for c in range(60)]
    assert (
        np.mean([batches_of[-1] - batches_of[0] for batches_of in positions]) > 15
    )  # 3 if they were in consecutive batches


def test_classes_meet_other_classes():
    """Over the epochs, every pair of classes is in a batch together."""
    labels = np.repeat(np.arange(8), 4)
    sampler = ClassBalancedBatchSampler(labels, 8, 2)
    pairs = {(a, b) for _ in range(60) for batch in sampler for a in labels[batch] for b in labels[batch] if a < b}
    assert len(pairs) == 28


def test_without_reshuffling_every_epoch_is_the_first():
    sampler = ClassBalancedBatchSampler(torch.arange(40) // 4, 8, 2, reshuffle=False)
    first = list(sampler)
    sampler.set_epoch(7)
    assert list(sampler) == list(sampler) == first == list(ClassBalancedBatchSampler(torch.arange(40) // 4, 8, 2))


PAIRS = np.stack([np.repeat(np.arange(10), 4), np.repeat(np.arange(5), 8)], axis=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_class": 1}, "samples_per_class must be at least 2"),
        ({"batch_size": 10}, "multiple of samples_per_class=4"),
        ({"batch_size": 4}, "at least 2 classes"),
        ({"batch_size": 0}, "got 0"),
        ({"batch_size": 400}, "Lower batch_size to 40 or less"),
        ({"labels": [0] * 9 + [1], "small_classes": "drop"}, "only 1 of 2 has samples_per_class=4 images"),
        ({"labels": torch.rand(40)}, "labels must be integers"),
        ({"labels": np.zeros((40, 3), int)}, r"shape \(N,\) or \(N, 2\)"),
        ({"labels": 3}, "labels must be integers"),
        ({"small_classes": "keep"}, "small_classes must be one of 'error', 'drop', 'repeat', got 'keep'"),
        ({"tail": "keep"}, "tail must be one of 'drop', 'fill', got 'keep'"),
        ({"few_classes": "drop"}, "few_classes must be one of 'error', 'repeat', got 'drop'"),
        ({"epoch_order": None}, "epoch_order must be one of 'longest', 'published', got None"),
        ({"epoch_order": "published", "small_classes": "repeat"}, 'epoch_order="published" needs'),
        ({"epoch_order": "published", "tail": "fill"}, 'epoch_order="published" needs'),
        ({"epoch_order": "published", "few_classes": "repeat"}, 'epoch_order="published" needs'),
        ({"epoch_order": "published", "super_classes": 1}, 'epoch_order="published" needs'),
        ({"super_classes": 0, "labels": PAIRS}, "super_classes must be None or from 1 to 2: .* got 0"),
        ({"super_classes": 3, "labels": PAIRS}, "a batch has 2 classes"),
        ({"super_classes": 6, "labels": PAIRS, "batch_size": 32}, "from 1 to 5: .* 5 super-classes have usable"),
        (
            {"batch_size": 48, "few_classes": "repeat"},
            "would repeat an image: .* only 10 .* Lower batch_size to 40",
        ),
        ({"labels": [0, 1, 1, 1, 1, 2, 2, 2, 2]}, "1 of 3 classes has fewer than samples_per_class=4 images"),
    ],
)
def test_errors_of_impossible_arguments_say_what_to_change(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassBalancedBatchSampler(
            **{"labels": np.repeat(np.arange(10), 4), "batch_size": 8, "samples_per_class": 4, **arguments}
        )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], r"labels must be integers .*, got <U1 \(2,\), with first value .*'a'"),
        ([0.0, 1.0], "labels must be integers"),
        ([0, None], "labels must be integers"),
        ([0, float("nan")], "labels must be integers"),
        ([[0, 1], [0]], "labels must be integers of shape"),
        (torch.zeros(4, dtype=torch.bfloat16), "labels must be integers of shape"),
        (np.array([0, 2**63], np.uint64), r"labels must be below 2\*\*63, got 9223372036854775808"),
        ([], "labels must be integers"),
        (np.array([], np.int64), "A batch needs at least 2 classes, but only 0 of 0"),
    ],
)
def test_labels_that_are_not_integers_are_rejected(labels, message):
    with pytest.raises(ValueError, match=message):
        ClassBalancedBatchSampler(labels, 4, 2)


INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.mark.parametrize(
    "offset", [0, 9_007_199_254_740_993]
)  # 2 ** 53 + 1, the first integer that float64 cannot represent
def test_labels_of_any_integer_type(offset):
    values = [value + offset for value in (3, 1, 0, 2, 1, 3, 2, 0)]
    expected = list(ClassBalancedBatchSampler(np.array([3, 1, 0, 2, 1, 3, 2, 0]), 4, 2))
    kinds = INTEGERS if offset == 0 else INTEGERS[-2:]
    forms = [values, tuple(values), torch.tensor(values), list(torch.tensor(values)), list(np.array(values))]
    for labels in forms + [np.array(values, kind) for kind in kinds]:
        assert list(ClassBalancedBatchSampler(labels, 4, 2)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_class": "all"}, "samples_per_class must be an integer, at least 2, got 'all'"),
        ({"samples_per_class": 2.0}, "samples_per_class must be an integer, at least 2, got 2.0"),
        ({"samples_per_class": True}, "samples_per_class must be an integer, at least 2, got True"),
        ({"batch_size": "8"}, "batch_size must be an integer, at least 1, got '8'"),
        ({"batch_size": None}, "batch_size must be an integer, at least 1, got None"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, "seed must be an integer, at least 0, got 0.5"),
        ({"super_classes": 1.5, "labels": PAIRS}, r"super_classes must be None or from 1 to 2: .* got 1\.5"),
        ({"super_classes": "all", "labels": PAIRS}, "super_classes must be None or from 1 to 2: .* got all"),
    ],
)
def test_arguments_of_a_wrong_type_are_rejected(arguments, message):
    settings = {"labels": np.repeat(np.arange(10), 4), "batch_size": 8, "samples_per_class": 4, **arguments}
    with pytest.raises(ValueError, match=message):
        ClassBalancedBatchSampler(**settings)


def test_numpy_integers_are_accepted():
    labels = np.repeat(np.arange(4), 4)
    assert list(ClassBalancedBatchSampler(labels, np.int64(8), np.int32(4))) == list(
        ClassBalancedBatchSampler(labels, 8, 4)
    )


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.full((3,), index)


LOADED = [TensorDataset(torch.arange(24).repeat(3, 1).T), Items(), list(torch.arange(24))]


@pytest.mark.parametrize("dataset", LOADED, ids=lambda dataset: type(dataset).__name__)
@pytest.mark.parametrize("settings", [{}, {"batch_size": 2}, {"batch_size": 2, "drop_last": True}, {"num_workers": 2}])
def test_a_batch_sampler_as_sampler_is_rejected(dataset, settings):
    sampler = ClassBalancedBatchSampler(np.repeat(np.arange(6), 4), 8, 4)
    with pytest.raises(ValueError, match="draws whole batches: pass it to the DataLoader as batch_sampler="):
        next(iter(DataLoader(dataset, sampler=sampler, **settings)))
    with pytest.raises(ValueError, match="as batch_sampler="):
        next(iter(DataLoader(dataset, sampler=DistributedSamplerWrapper(sampler, num_replicas=2, rank=0))))


class Delegating(ClassBalancedBatchSampler):
    def __iter__(self):
        yield from super().__iter__()


class Returning(Delegating):
    def __iter__(self):
        return super().__iter__()


class Reversing(Returning):
    def batches(self):
        for batch in super().__iter__():
            yield batch[::-1]

    def __iter__(self):
        yield from self.batches()


class SingleIndices(torch.utils.data.Sampler):
    """Single indices, drawn from batches: what torch's BatchSampler needs."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for batch in self.batches:
            yield from batch


@pytest.mark.parametrize("kind", [Delegating, Returning, Reversing])
def test_a_subclass_as_sampler_is_rejected(kind):
    labels = np.repeat(np.arange(6), 4)
    sampler = kind(labels, 8, 4)
    for arguments in ({}, {"batch_size": 2}, {"num_workers": 1}):
        with pytest.raises(ValueError, match=f"{kind.__name__} draws whole batches: pass it .* as batch_sampler="):
            next(iter(DataLoader(LOADED[0], sampler=sampler, **arguments)))
    with pytest.raises(ValueError, match="as batch_sampler="):
        next(iter(DataLoader(Items(), sampler=DistributedSamplerWrapper(sampler, num_replicas=2, rank=0))))
    expected = [sorted(batch) for batch in ClassBalancedBatchSampler(labels, 8, 4)]
    for arguments in (
        {"batch_sampler": kind(labels, 8, 4)},
        {"sampler": kind(labels, 8, 4), "batch_size": None},
        {"sampler": SingleIndices(kind(labels, 8, 4)), "batch_size": 8},
    ):
        batches = DataLoader(LOADED[0], **arguments)
        assert [sorted(batch[:, 0].tolist()) for (batch,) in batches] == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_sampler_is_accepted_where_torch_expects_batches(num_workers):
    labels = np.repeat(np.arange(6), 4)
    data, expected = LOADED[0], list(ClassBalancedBatchSampler(labels, 8, 4))
    settings = (
        {"batch_sampler": ClassBalancedBatchSampler(labels, 8, 4)},
        {
            "sampler": ClassBalancedBatchSampler(labels, 8, 4),
            "batch_size": None,  # torch then requests whole batches from the data set
        },
    )
    for arguments in settings:
        batches = list(DataLoader(data, **arguments, num_workers=num_workers))
        assert [batch[:, 0].tolist() for (batch,) in batches] == expected
    flat = list(chain(*ClassBalancedBatchSampler(labels, 8, 4)))
    assert torch.cat([batch for (batch,) in DataLoader(data, sampler=flat, batch_size=5)])[:, 0].tolist() == flat
