import multiprocessing
import os
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
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
    for name, title in (("recall@1", "R@1"), ("recall@10", "R@10"), ("map@r", "mAP@R")):
        assert title in printed
        assert expected(name) in printed


def test_queries_are_drawn_and_saved(folder, tmp_path, capsys):
    arguments = ["evaluate", str(folder), "--queries", "12", "--part-size", "5", "--results", str(tmp_path / "results")]
    main(arguments)
    first = capsys.readouterr().out
    assert "12 queries, gallery of 60" in first
    assert len(list((tmp_path / "results").glob("part-*.npz"))) == 3
    main(arguments)
    assert capsys.readouterr().out == first


def test_roles_groups_and_scores_are_used(folder, tmp_path, capsys):
    """Those of items.csv; drawn queries are queries."""
    is_query, groups = torch.arange(60) % 3 == 0, torch.arange(60) // 20
    rows = [f"{number},{int(is_query[number])},{int(not is_query[number])},{groups[number]}\n" for number in range(60)]
    (folder / "items.csv").write_text("id,is_query,is_gallery,group\n" + "".join(rows))
    main(["evaluate", str(folder), "--scores", "mrr"])
    printed = capsys.readouterr().out
    metric = RetrievalScores("mrr")
    metric.update(EMBEDDINGS, LABELS, is_query=is_query, is_gallery=~is_query, groups=groups)
    assert f"{100 * float(metric.compute()):.2f}" in printed
    assert "20 queries, gallery of 40" in printed
    assert "recall" not in printed
    results = tmp_path / "results"
    main(["evaluate", str(folder), "--queries", "9", "--results", str(results)])
    position_of = torch.cat([torch.arange(0, 60, 2), torch.arange(1, 60, 2)])  # -> id, in the order of the shards
    assert is_query[position_of[np.load(results / "part-000000.npz")["queries"]]].all()


def test_each_process_of_a_machine_has_its_gpu(folder, monkeypatch):
    devices = []
    monkeypatch.setattr("lightning_recall.metrics.score_in_parts", lambda *args: devices.append(args[-1]) or {})
    monkeypatch.setenv("LOCAL_RANK", "3")
    for device in ("cuda", "cuda:1", "cpu"):
        main(["evaluate", str(folder), "--device", device])
    assert devices == ["cuda:3", "cuda:1", "cpu"]


def one_of_two(rank, store, folder, output):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with (output / f"{rank}.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main(["evaluate", str(folder), "--ks", "1", "10", "--part-size", "20"])
    assert not torch.distributed.is_initialized()


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
