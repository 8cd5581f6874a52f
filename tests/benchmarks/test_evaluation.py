import re

import pytest
import torch

from lightning_recall.benchmarks.evaluation import compute_scores, main, random_embeddings, recall_by_faiss


def test_prints_its_tables(capsys, monkeypatch):
    pytest.importorskip("faiss")  # an extra
    monkeypatch.setattr("lightning_recall.benchmarks.evaluation.KS", (1, 10))
    main(["--size", "300", "--gallery", "11000", "--dim", "16", "--faiss"])
    shown = capsys.readouterr().out
    for row, count in (("matrix product", 4), ("recall@k", 4), ("all scores", 4), ("faiss", 2)):
        assert len(re.findall(rf"│ {row} ", shown)) == count
    for kind in ("clustered", "random"):
        assert f"Each of 300 {kind} items queries all others" in shown
        assert f"75 {kind} queries and a gallery of 300" in shown
    assert re.search(r"│ 10,000 ", shown)


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")  # an extra
    embeddings, labels = random_embeddings(2000, 16, "clustered", torch.device("cpu"))
    ours = compute_scores(embeddings, labels, ("recall",))
    assert recall_by_faiss(embeddings, labels) == {name: pytest.approx(float(value)) for name, value in ours.items()}
