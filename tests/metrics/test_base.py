import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from lightning_recall.metrics import ClusterNMI, GroundTruth, RecallAtK, RevisitedMAP

EMBEDDINGS, LABELS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) // 2
TRUTH = [GroundTruth([0], [1], [2])]
METRICS = [RecallAtK, ClusterNMI, lambda: RevisitedMAP(TRUTH)]


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (EMBEDDINGS.tolist(), "embeddings must be a tensor, got list: convert it with torch.as_tensor"),
        (EMBEDDINGS.numpy(), "embeddings must be a tensor, got ndarray: convert it with torch.as_tensor"),
        (EMBEDDINGS[0], r"shape \(B, D\).*got \(3,\)"),
        (EMBEDDINGS.long(), "embeddings must be floating point, of 16, 32 or 64 bits, got torch.int64"),
        (EMBEDDINGS.cfloat(), "embeddings must be floating point, of 16, 32 or 64 bits, got torch.complex64"),
        (EMBEDDINGS.to(torch.float8_e4m3fn), "embeddings must be floating point, of 16, 32 or 64 bits, got .*float8"),
        (EMBEDDINGS / 0, "embeddings contain NaN or infinity"),
        ((EMBEDDINGS * 1e6).half(), "embeddings contain NaN or infinity"),
    ],
)
def test_embeddings_that_metrics_refuse(make, embeddings, message):
    with pytest.raises(ValueError, match=message):
        make().update(embeddings, torch.arange(6), torch.arange(6))


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.tolist(), "labels must be a tensor, got list: convert it with torch.as_tensor"),
        (LABELS.numpy(), "labels must be a tensor, got ndarray: convert it with torch.as_tensor"),
        (LABELS.bool(), "labels must be integers, got torch.bool"),
        (LABELS.float(), "labels must be integers, got torch.float32"),
        (LABELS.cfloat(), "labels must be integers, got torch.complex64"),
        (LABELS[:, None], r"labels \(B,\), got \(6, 3\) and \(6, 1\)"),
        (LABELS[0], r"labels \(B,\), got \(6, 3\) and \(\)"),
    ],
)
def test_labels_that_metrics_refuse(make, labels, message):
    with pytest.raises(ValueError, match=message):
        make().update(EMBEDDINGS, labels, torch.arange(6))


@pytest.mark.parametrize("name", ["indices", "groups"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (list(range(6)), "must be a tensor, got list"),
        (torch.arange(6) / 2, "must be integers, got torch.float32"),  # 0 and 0.5 are not the same item
        (torch.ones(6).bool(), "must be integers, got torch.bool"),
        (torch.arange(5), r"must be of shape \(6,\), one for each item, got \(5,\)"),
        (torch.arange(7), r"must be of shape \(6,\), one for each item, got \(7,\)"),
        (torch.arange(6)[:, None], r"must be of shape \(6,\), one for each item, got \(6, 1\)"),
    ],
)
def test_indices_and_groups_that_metrics_refuse(name, values, message):
    metric = RecallAtK()
    with pytest.raises(ValueError, match=f"{name} {message}"):
        metric.update(EMBEDDINGS, LABELS, **{name: values})
    assert len(metric.labels) == 0  # a refused batch leaves no state


@pytest.mark.parametrize("name", ["is_query", "is_gallery"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([True] * 6, "must be a tensor, got list"),
        (torch.tensor([1, -1] * 3), r"must be of shape .* and bool, got \(6,\) and torch.int64"),  # -1 is not False
        (torch.ones(5).bool(), r"must be of shape \(6,\), one for each item, and bool, got \(5,\)"),
        (torch.ones(6, 1).bool(), r"must be of shape \(6,\), one for each item, and bool, got \(6, 1\)"),
    ],
)
def test_masks_that_metrics_refuse(name, values, message):
    with pytest.raises(ValueError, match=f"{name} {message}"):
        RecallAtK().update(EMBEDDINGS, LABELS, **{name: values})


def test_all_metrics_take_the_same_update_and_share_it():
    metrics = {"recall": RecallAtK(1, ignore_index=7), "nmi": ClusterNMI(), "landmarks": RevisitedMAP(TRUTH)}
    collection = MetricCollection(metrics)
    columns = {"is_query": torch.arange(6) < 5, "is_gallery": torch.arange(6) > 0, "groups": torch.arange(6)}
    for part in torch.arange(6).split(4):
        batch = {name: values[part] for name, values in columns.items()}
        collection.update(EMBEDDINGS[part], LABELS[part], part, **batch)
    assert len(collection.compute_groups) == 1  # the embeddings are kept once
    expected = {}
    for name, metric in {"recall": RecallAtK(1), "nmi": ClusterNMI(), "landmarks": RevisitedMAP(TRUTH)}.items():
        metric.update(EMBEDDINGS, LABELS, torch.arange(6), **columns)
        value = metric.compute()
        expected |= value if isinstance(value, dict) else {name: value}
    assert collection.compute() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64])
def test_integers_of_any_type_are_labels(dtype):
    embeddings = torch.eye(3).repeat_interleave(2, 0)
    metric = RecallAtK(1, ignore_index=256 + 1)  # 257 would be 1 in uint8
    metric.update(embeddings, LABELS.to(dtype), indices=torch.arange(6).to(dtype))
    assert metric.compute() == 1
    assert len(metric.search().labels) == 6


@pytest.mark.parametrize(
    "labels",
    [
        9 * 10**15 + torch.arange(4),
        2**63 - 1 - torch.arange(4),
        -(2**63) + torch.arange(4),
        torch.tensor([2**64 - 1, 2**64 - 2, 2**63, 2**63 - 1], dtype=torch.uint64),
    ],
)
def test_large_labels_and_indices_are_exact(labels):
    """Neighbouring values are equal in float32, and most of them in float64."""
    embeddings = torch.eye(2).repeat_interleave(4, 0) + torch.arange(8)[:, None] % 2 * torch.tensor([0.0, 0.1])
    classes = torch.stack([labels, labels], 1).flatten()  # two items per class
    metric = RecallAtK(1)
    metric.update(embeddings, classes, classes.cumsum(0) if labels.dtype == torch.int64 else None)
    # [1, 0], [1, .1], [1, 0], [1, .1] of classes a, a, b, b: the duplicate with the other label is nearer
    assert metric.compute() == 0
    metric = RecallAtK(1)
    metric.update(torch.eye(4).repeat_interleave(2, 0), classes)
    assert metric.compute() == 1


def test_extreme_embeddings_are_accepted():
    zero = RecallAtK(1)
    zero.update(torch.zeros(4, 3), torch.arange(4) // 2)  # zero vectors are equally similar to all
    assert zero.compute() == 0
    nothing = RecallAtK(1)
    nothing.update(torch.zeros(4, 0), torch.arange(4) // 2)
    assert nothing.compute() == 0
    far = RecallAtK(10**9)
    far.update(EMBEDDINGS, LABELS)
    assert far.compute() == 1
    learning = EMBEDDINGS.clone().requires_grad_()
    metric = RecallAtK(1)
    metric.update(learning * 1, LABELS)
    assert not metric.embeddings[0].requires_grad
    empty = RecallAtK(1)
    empty.update(EMBEDDINGS[:0], LABELS[:0])
    with pytest.raises(ValueError, match="None of the 0 items"):
        empty.compute()
    empty.update(EMBEDDINGS, LABELS)
    empty.update(EMBEDDINGS[:0], LABELS[:0])
    metric = RecallAtK(1)
    metric.update(EMBEDDINGS, LABELS)
    assert empty.compute() == metric.compute()


@pytest.mark.parametrize("ks", [True, (True,), 1.0, (1.0,), "12", None, torch.tensor([1, 2]), (1, 1), 0, (), (2, -1)])
def test_wrong_cut_offs_are_refused(ks):
    for make in (RecallAtK, lambda ks: RevisitedMAP(TRUTH, ks)):
        with pytest.raises(ValueError, match="ks must contain one or more distinct integers, each at least 1, got"):
            make(ks)


def test_cut_offs_may_be_numpy_integers():
    metric = RecallAtK(np.arange(1, 3))
    metric.update(EMBEDDINGS, LABELS)
    assert list(metric.compute()) == ["recall@1", "recall@2"]
