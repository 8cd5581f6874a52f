import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from lightning_recall.metrics import ClusterNMI


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
    metric.update(embeddings[:10], labels[:10], torch.arange(10))  # seen again
    kept = labels < 9
    unit = torch.nn.functional.normalize(embeddings[kept], dim=1).numpy()
    clusters = KMeans(9, init="random", n_init=1, max_iter=20, random_state=0).fit_predict(unit)
    expected = nmi_by_counting(labels[kept].numpy(), clusters)
    assert 0.2 < expected < 0.9
    assert metric.compute()["nmi"].item() == pytest.approx(expected, abs=1e-6)


def test_of_nothing_and_of_broken_embeddings():
    with pytest.raises(ValueError, match="no batch was added"), pytest.warns(UserWarning, match="before"):
        ClusterNMI().compute()
    with pytest.raises(ValueError, match="NaN or infinity"):
        ClusterNMI().update(torch.full((2, 2), torch.inf), torch.arange(2))
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3,\)"):
        ClusterNMI().update(torch.ones(2, 2), torch.arange(3))


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"pip install lightning-recall\[nmi\]"):
        ClusterNMI()
