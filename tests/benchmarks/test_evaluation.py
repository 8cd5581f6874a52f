import re

import pytest
import torch

from lightning_recall.benchmarks.evaluation import compute_scores, main, random_embeddings, recall_by_faiss


def test_prints_both_tables(capsys, monkeypatch):
    pytest.importorskip("faiss")  # an extra
    monkeypatch.setattr("lightning_recall.benchmarks.evaluation.KS", (1, 10))
    main(["--size", "300", "--gallery", "11000", "--dim", "16", "--faiss"])
    shown = capsys.readouterr().out
    for row in ("matrix product", "recall@k", "all scores", "faiss"):
        assert len(re.findall(rf"│ {row} ", shown)) == 2
    assert re.search(r"│ 10,000 ", shown)


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")  # an extra
    embeddings, labels = random_embeddings(2000, 16, "clustered", torch.device("cpu"))
    ours = compute_scores(embeddings, labels, ("recall",))
    assert recall_by_faiss(embeddings, labels) == {name: pytest.approx(float(value)) for name, value in ours.items()}
