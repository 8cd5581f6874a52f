from pathlib import Path

import pytest
import torch

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.comparison.pairing import item_name, pair_sets, select


def shuffled(embeddings, seed=0):
    """The same images with other ids, in another order."""
    order = torch.randperm(len(embeddings.ids), generator=torch.Generator().manual_seed(seed))
    return select(embeddings, order)._replace(ids=torch.arange(len(order)))


def test_images_are_paired_by_path(two_sets):
    first, second = two_sets
    paired = pair_sets(first, shuffled(second))
    assert paired[0].paths == paired[1].paths == first.paths
    assert torch.equal(paired[1].embeddings, second.embeddings)
    assert torch.equal(paired[1].labels, second.labels)


@pytest.mark.parametrize("missing", ["first", "second"])
def test_without_paths_images_are_paired_by_id(two_sets, missing):
    first, second = two_sets
    order = torch.randperm(len(second.ids), generator=torch.Generator().manual_seed(1))
    expected = second.embeddings
    second = select(second, order)
    first, second = (each._replace(paths=None) if each.path.name == missing else each for each in (first, second))
    assert torch.equal(pair_sets(first, second)[1].embeddings, expected)


def test_repeated_paths_such_as_crops_are_paired_by_id(two_sets):
    first, second = (each._replace(paths=["photo.jpg"] * len(each.ids)) for each in two_sets)
    assert torch.equal(pair_sets(first, second)[1].embeddings, second.embeddings)


def test_ignored_images_are_dropped(two_sets):
    labels = two_sets[0].labels.clone()
    labels[::10] = IGNORED_LABEL
    first, second = pair_sets(*(each._replace(labels=labels) for each in two_sets))
    assert len(first.ids) == len(second.ids) == len(first.paths) == 135
    assert IGNORED_LABEL not in first.labels


def test_a_missing_role_is_that_of_every_item(two_sets):
    first, second = two_sets
    everything = torch.ones(len(first.ids), dtype=torch.bool)
    assert pair_sets(first._replace(is_query=everything), second)[1].is_query is None


def test_names_of_items(two_sets):
    assert item_name(two_sets[0], 2) == "102/2.jpg"
    assert item_name(two_sets[0]._replace(paths=None), 2) == "item 6"


def without_item(each, item):
    return select(each, torch.tensor([i for i in range(len(each.ids)) if i != item]))


def changed(values, item, value):
    values = values.clone() if isinstance(values, torch.Tensor) else list(values)
    values[item] = value
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a._replace(labels=None), b), "first has no labels: embed a data set with labels"),
        (lambda a, b: (a, b._replace(labels=None)), "second has no labels"),
        (
            lambda a, b: (a, b._replace(path=Path("./first"))),
            "first was given twice: give the embeddings of two models",
        ),
        (
            lambda a, b: (a, without_item(b, 4)),
            "first has 150 and second 149 images, 149 of them in both, and '104/4.jpg' is only in first",
        ),
        (
            lambda a, b: (without_item(a, 4), b),
            "first has 149 and second 150 images, 149 of them in both, and '104/4.jpg' is only in second",
        ),
        (
            lambda a, b: (a._replace(paths=None), without_item(b, 4)),
            "149 of them in both, and item 12 is only in first",
        ),
        (
            lambda a, b: (a, b._replace(labels=changed(b.labels, 7, 9))),
            r"'107/7.jpg' has label 107 in first, but 9 in second \(1 of 150 images differ\)",
        ),
        (
            lambda a, b: (a._replace(groups=torch.zeros(150).long()), b),
            r"'100/0.jpg' has group 0 in first, but None in second \(150 of 150",
        ),
        (
            lambda a, b: (a, b._replace(is_query=changed(torch.ones(150).bool(), 3, False))),
            r"'103/3.jpg' has is_query True in first, but False in second \(1 of",
        ),
        (
            lambda a, b: (a, b._replace(is_gallery=changed(torch.ones(150).bool(), 3, False))),
            "'103/3.jpg' has is_gallery True in first, but False in second",
        ),
        (
            lambda a, b: (
                a._replace(paths=changed(a.paths, 1, "100/0.jpg")),
                b._replace(paths=changed(b.paths, 1, "x\n'.jpg")),
            ),
            r"'100/0.jpg' has path '100/0.jpg' in first, but \"x\\n'.jpg\" in second",
        ),
    ],
)
def test_sets_that_do_not_belong_together(two_sets, change, message):
    with pytest.raises(ValueError, match=message):
        pair_sets(*change(*two_sets))
