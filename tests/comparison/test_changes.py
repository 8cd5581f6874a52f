import numpy as np
import pytest
import torch

from lightning_recall.comparison.changes import find_changes, nearest_of_kind
from lightning_recall.comparison.compare import search


def by_loops(each, groups=None):
    """Of each query: rank of the first relevant item, and the nearest relevant and the nearest other item."""
    embeddings = each.embeddings.double().numpy()
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = []
    for query, row in enumerate(embeddings):
        similarities = embeddings @ row
        same = (each.labels == each.labels[query]).numpy()
        relevant = same & (np.arange(len(row := similarities)) != query)
        if groups is not None:
            relevant &= (groups != groups[query]).numpy()
        best = np.where(relevant, row, -np.inf).argmax()
        found.append((1 + (row[~same] >= row[best]).sum(), best, np.where(same, -np.inf, row).argmax()))
    return [np.array(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("has_groups", [False, True])
@pytest.mark.parametrize("together", [2**24, 200])
def test_changes_are_those_found_by_loops(two_sets, has_groups, together, monkeypatch):
    monkeypatch.setattr("lightning_recall.comparison.changes.MAX_SIMILARITIES", together)
    groups = torch.arange(150) // 60 if has_groups else None
    sets = [each._replace(groups=groups) for each in two_sets]
    changes = find_changes(*(search(each, ("recall",), (1,), False) for each in sets))
    (first_ranks, first_best, first_wrong), (second_ranks, second_best, second_wrong) = (
        by_loops(each, groups) for each in sets
    )
    gained, lost = (second_ranks == 1) & (first_ranks > 1), (first_ranks == 1) & (second_ranks > 1)
    assert changes.num_gained == gained.sum() > 5
    assert changes.num_lost == lost.sum() > 5
    assert changes.both_right == ((first_ranks == 1) & (second_ranks == 1)).sum() > 5
    assert changes.both_wrong == ((first_ranks > 1) & (second_ranks > 1)).sum() > 5
    queries = changes.queries.numpy()
    assert sorted(queries) == sorted(np.flatnonzero(gained | lost))
    assert changes.gained.tolist() == gained[queries].tolist()
    assert changes.ranks.tolist() == np.where(gained, first_ranks, second_ranks)[queries].tolist()
    assert changes.ranks.tolist() == sorted(changes.ranks.tolist(), reverse=True)
    assert changes.right.tolist() == np.where(gained, second_best, first_best)[queries].tolist()
    assert changes.wrong.tolist() == np.where(gained, first_wrong, second_wrong)[queries].tolist()
    units = [torch.nn.functional.normalize(each.embeddings, dim=1) for each in sets]
    for row, query in enumerate(queries):
        right_model, wrong_model = (1, 0) if gained[query] else (0, 1)
        expected = [
            float(units[model][query] @ units[model][item])
            for model, item in ((right_model, changes.right[row]), (wrong_model, changes.wrong[row]))
        ]
        assert changes.similarities[row].tolist() == pytest.approx(expected, abs=1e-5)


def test_equal_searches_have_no_changes(two_sets):
    result = search(two_sets[0], ("recall",), (1,), False)
    changes = find_changes(result, result)
    assert len(changes.queries) == changes.num_gained == changes.num_lost == 0
    assert changes.both_right + changes.both_wrong == 150


def test_no_queries_have_no_neighbours(two_sets):
    result = search(two_sets[0], ("recall",), (1,), False)
    similarities, items = nearest_of_kind(result, torch.zeros(0).long(), relevant=True)
    assert len(similarities) == len(items) == 0
