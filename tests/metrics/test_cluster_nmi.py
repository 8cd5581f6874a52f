import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from lightning_recall.metrics import ClusterNMI
from lightning_recall.metrics.cluster_nmi import partition_nmi


def nmi_by_counting(labels, clusters):
    """2 I(a; b) / (H(a) + H(b)) from the table of counts."""
    table = np.array([[((labels == a) & (clusters == b)).sum() for b in set(clusters)] for a in set(labels)])
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    outer = np.outer(rows, columns)
    mutual = (joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum()
    return 2 * mutual / -((rows * np.log(rows)).sum() + (columns * np.log(columns)).sum())


def test_equals_its_definition():
    embeddings, labels = torch.randn(80, 4), torch.arange(80) // 8
    metric = ClusterNMI(ignore_index=9)
    for rows in torch.randperm(80).split(30):
        metric.update(embeddings[rows], labels[rows], rows)
    metric.update(embeddings[:10], labels[:10], torch.arange(10))  # duplicates count once
    kept = labels < 9
    unit = torch.nn.functional.normalize(embeddings[kept], dim=1).numpy()
    clusters = KMeans(9, init="random", n_init=1, max_iter=20, random_state=0).fit_predict(unit)
    expected = nmi_by_counting(labels[kept].numpy(), clusters)
    assert 0.2 < expected < 0.9
    assert metric.compute()["nmi"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("size", "num_classes"), [(7, 1), (24, 3), (1000, 50), (20_000, 2000)])
@pytest.mark.parametrize("noise", [0, 0.4, 1])
def test_equals_scikit_learn(size, num_classes, noise):
    labels = torch.arange(size) * num_classes // size
    others = torch.randint(0, num_classes, (size,))
    clusters = torch.where(torch.rand(size) < noise, others, labels)
    expected = normalized_mutual_info_score(labels.numpy(), clusters.numpy())
    assert partition_nmi(labels, clusters).item() == pytest.approx(expected, abs=1e-6)
    assert partition_nmi(labels, 0 * clusters).item() == pytest.approx(float(num_classes == 1), abs=1e-6)


def test_missing_and_wrong_items_are_refused():
    with pytest.raises(ValueError, match="before any item was added"), pytest.warns(UserWarning, match="before"):
        ClusterNMI().compute()
    with pytest.raises(ValueError, match="NaN or infinity"):
        ClusterNMI().update(torch.full((2, 2), torch.inf), torch.arange(2))
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3,\)"):
        ClusterNMI().update(torch.ones(2, 2), torch.arange(3))
    metric = ClusterNMI(ignore_index=5)
    metric.update(torch.ones(2, 2), torch.full((2,), 5))
    with pytest.raises(ValueError, match="all labels are ignore_index = 5"):
        metric.compute()


def test_a_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"pip install lightning-recall\[nmi\]"):
        ClusterNMI()
