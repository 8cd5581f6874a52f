import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torchmetrics import MetricCollection

from lightning_recall import RecallAtK
from lightning_recall.metrics import search as module


def recall_by_sklearn(embeddings, labels, k):
    """Hit rate by an independent exact search."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    _, found = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(unit).kneighbors(unit)
    hits, queries = 0, 0
    for q in range(len(labels)):
        if (labels == labels[q]).sum() > 1:
            neighbors = [z for z in found[q] if z != q][:k]
            hits += (labels[neighbors] == labels[q]).any()
            queries += 1
    return hits / queries


@pytest.mark.parametrize("rows", [1, 20, 4096])
def test_equals_an_independent_search(rows, monkeypatch):
    monkeypatch.setattr(module, "QUERY_ROWS", rows)
    monkeypatch.setattr(module, "GALLERY_ROWS", rows)
    embeddings, labels = torch.randn(150, 8, dtype=torch.float64), torch.randint(0, 40, (150,))
    assert (labels.bincount() == 1).any()  # some stand alone
    metric = RecallAtK(ks=(1, 2, 4, 8))
    for rows in torch.arange(150).split(37):
        metric.update(embeddings[rows], labels[rows])
    for k in (1, 2, 4, 8):
        expected = recall_by_sklearn(embeddings.numpy(), labels.numpy(), k)
        assert metric.compute()[f"recall@{k}"].item() == pytest.approx(expected, abs=1e-7)


def test_a_collapsed_network_scores_zero():
    metric = RecallAtK(ks=(1, 2))
    metric.update(torch.ones(9, 4), torch.arange(9) // 3)
    assert metric.compute() == {"recall@1": 0.0, "recall@2": 0.0}


def test_a_duplicate_of_the_query_counts_by_its_label():
    metric = RecallAtK(ks=(1,))
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 0, 1, 1]))
    assert metric.compute()["recall@1"] == 1  # the twin is found, though as similar as the query itself


def test_the_matrix_is_never_whole(monkeypatch):
    monkeypatch.setattr(module, "QUERY_ROWS", 100)
    monkeypatch.setattr(module, "GALLERY_ROWS", 250)
    shapes, product = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: shapes.append((len(a), b.shape[1])) or product(a, b, out=out))
    metric = RecallAtK()
    metric.update(torch.randn(500, 4), torch.arange(500) // 5)
    metric.compute()
    assert shapes == [(100, 250)] * 10


def test_large_labels_and_half_precision():
    metric = RecallAtK(ks=(1,))
    labels = 2**40 + torch.tensor([0, 1, 2, 3, 4, 4])  # all the same in fp32
    metric.update(torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1], [1, 1]]).half(), labels)
    assert metric.compute()["recall@1"] == 1
    metric.reset()
    metric.update(torch.eye(4).repeat_interleave(2, 0).half(), 2**40 + torch.arange(8))
    with pytest.raises(ValueError, match="None of the 8 items"):
        metric.compute()


def test_an_item_seen_twice_counts_once():
    embeddings, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 3])
    once, twice = RecallAtK(), RecallAtK()
    once.update(embeddings, labels)
    for rows in (torch.tensor([0, 2, 4]), torch.tensor([1, 3, 0])):  # what two processes see of five items
        twice.update(embeddings[rows], labels[rows], indices=rows)
    assert twice.compute() == once.compute()
    with pytest.raises(ValueError, match="indices with every batch, or with none"):
        twice.update(embeddings, labels)
    with pytest.raises(ValueError, match="indices with every batch, or with none"):
        once.update(embeddings, labels, indices=torch.arange(5))


def test_in_a_collection_and_reset():
    collection = MetricCollection({"cosine": RecallAtK(ks=(1,)), "dot": RecallAtK(ks=(1,), normalize=False)}, prefix="")
    long = torch.tensor([[1.0, 0.0], [0.9, 0.1], [5.0, 4.9], [4.0, 5.0]])
    collection.update(long, torch.tensor([0, 0, 1, 1]))
    scores = collection.compute()
    assert scores["cosine_recall@1"] == 1
    assert scores["dot_recall@1"] == 0.5  # the long vectors of class 1 are nearest to everyone
    collection.reset()
    collection["cosine"].update(torch.eye(2), torch.tensor([3, 3]))
    assert collection["cosine"].compute() == {"recall@1": 1.0}


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), r"got \(3, 2\) and \(2,\)"),
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), r"shape \(B, D\)"),
        (torch.ones(3, 2), torch.zeros(3), "labels must be integers"),
        (torch.full((3, 2), float("nan")), torch.zeros(3, dtype=torch.int64), "NaN"),
    ],
)
def test_wrong_batches_are_refused(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        RecallAtK().update(embeddings, labels)


@pytest.mark.parametrize("ks", [(), (0,), (2.5,)])
def test_wrong_ks_are_refused(ks):
    with pytest.raises(ValueError, match="ks must be"):
        RecallAtK(ks=ks)


def test_recall_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no batch was added"), pytest.warns(UserWarning, match="before"):
        RecallAtK().compute()
    metric = RecallAtK()
    metric.update(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="None of the 3 items has another of its class"):
        metric.compute()


@pytest.mark.parametrize("rows", [1, 4096])
@pytest.mark.parametrize("overlap", [False, True])
def test_queries_search_the_gallery_only(rows, overlap, monkeypatch):
    monkeypatch.setattr(module, "QUERY_ROWS", rows)
    monkeypatch.setattr(module, "GALLERY_ROWS", rows)
    embeddings, labels = torch.randn(90, 6, dtype=torch.float64), torch.randint(0, 12, (90,))
    is_query = torch.rand(90) < 0.4
    is_gallery = ~is_query | (overlap & (torch.rand(90) < 0.5))
    metric = RecallAtK(ks=(1, 3), ignore_index=11)
    for rows in torch.randperm(90).split(25):
        metric.update(embeddings[rows], labels[rows], rows, is_query[rows], is_gallery[rows])
    metric.update(embeddings[:5], labels[:5], torch.arange(5), is_query[:5], is_gallery[:5])  # seen again
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).numpy()
    hits = []
    for q in np.flatnonzero(is_query & (labels != 11)):
        gallery = [z for z in np.flatnonzero(is_gallery & (labels != 11)) if z != q]
        found = sorted(gallery, key=lambda z: -unit[z] @ unit[q])
        right = [bool(labels[z] == labels[q]) for z in found]
        if any(right):
            hits.append([any(right[:k]) for k in (1, 3)])
    expected = np.mean(hits, 0)
    assert 0 < expected[0] < expected[1] < 1
    assert [metric.compute()[f"recall@{k}"].item() for k in (1, 3)] == pytest.approx(expected)


def test_broken_embeddings_of_ignored_items_do_not_matter():
    metric = RecallAtK((1,), ignore_index=-100)
    metric.update(torch.tensor([[1.0, 0], [1, 0.1], [torch.nan, 0], [0, 1]]), torch.tensor([1, 1, -100, 2]))
    assert metric.compute()["recall@1"] == 1


def test_a_gallery_without_the_queries_classes_is_told():
    metric = RecallAtK((1,))
    is_query = torch.tensor([True, False, False])
    metric.update(torch.randn(3, 2), torch.tensor([1, 2, 2]), None, is_query, ~is_query)
    with pytest.raises(ValueError, match="None of the 3 items has another of its class to find"):
        metric.compute()
