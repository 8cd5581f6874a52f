import multiprocessing
import os
from contextlib import redirect_stdout

import pytest
import torch

from lightning_recall.cli import main
from lightning_recall.embedding_sets.shards import save_shard
from lightning_recall.metrics import RetrievalScores

EMBEDDINGS = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 17


@pytest.fixture
def folder(tmp_path):
    for rank in range(2):
        ids = torch.arange(rank, 60, 2)
        arrays = {"embeddings": EMBEDDINGS[ids], "ids": ids, "labels": LABELS[ids]}
        save_shard(tmp_path / "embeddings", rank, "npz", arrays, "")
    return tmp_path / "embeddings"


def expected(name):
    metric = RetrievalScores(("recall", "map@r"), (1, 10))
    metric.update(EMBEDDINGS, LABELS)
    return f"{100 * float(metric.compute()[name]):.2f}"


def test_it_prints_the_scores(folder, capsys):
    main(["evaluate", str(folder), "--ks", "1", "10"])
    printed = capsys.readouterr().out
    assert "60 queries, gallery of 60" in printed
    for name in ("recall@1", "recall@10", "map@r"):
        assert name in printed
        assert expected(name) in printed


def test_queries_are_drawn_and_saved(folder, tmp_path, capsys):
    arguments = ["evaluate", str(folder), "--queries", "12", "--part-size", "5", "--results", str(tmp_path / "results")]
    main(arguments)
    first = capsys.readouterr().out
    assert "12 queries, gallery of 60" in first
    assert len(list((tmp_path / "results").glob("part-*.npz"))) == 3
    main(arguments)
    assert capsys.readouterr().out == first


def one_of_two(rank, store, folder, output):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with (output / f"{rank}.txt").open("w") as file, redirect_stdout(file):
        main(["evaluate", str(folder), "--ks", "1", "10", "--part-size", "20"])


def test_under_torchrun_the_processes_share_the_queries(folder, tmp_path):
    """With the environment variables that torchrun sets, and a store as that of its agent."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(rank, store.port, folder, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    printed = (tmp_path / "0.txt").read_text()
    assert expected("recall@1") in printed
    assert expected("map@r") in printed
    assert (tmp_path / "1.txt").read_text() == ""


def test_embeddings_without_labels_are_refused(tmp_path):
    save_shard(tmp_path / "embeddings", 0, "npz", {"embeddings": EMBEDDINGS, "ids": torch.arange(60)}, "")
    with pytest.raises(ValueError, match="has no labels, which say what is relevant: predict images with labels"):
        main(["evaluate", str(tmp_path / "embeddings")])
