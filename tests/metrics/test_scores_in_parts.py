import itertools
import os
import re
from contextlib import suppress

import numpy as np
import pytest
import torch

from lightning_recall.metrics import RetrievalScores, score_in_parts
from lightning_recall.metrics import scores_in_parts as module
from lightning_recall.metrics.scores import AT_K, OVERALL
from lightning_recall.metrics.scores_in_parts import drawn_queries
from lightning_recall.search import EmbeddingBlocks

ALL = (*AT_K, *OVERALL)
GENERATOR = torch.Generator().manual_seed(3)
EMBEDDINGS = torch.randn(97, 6, generator=GENERATOR).half()
LABELS = torch.randint(0, 25, (97,), generator=GENERATOR)
GROUPS = torch.randint(0, 3, (97,), generator=GENERATOR)
IS_QUERY = torch.rand(97, generator=GENERATOR) < 0.6
IS_GALLERY = torch.rand(97, generator=GENERATOR) < 0.7


@pytest.fixture
def pieces(tmp_path):
    """Three memory-mapped files."""
    for number, part in enumerate(EMBEDDINGS.split(40)):
        np.save(tmp_path / f"{number}.npy", part.numpy())
    return [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(3)]


def expected(**given):
    metric = RetrievalScores(ALL, (1, 5))
    metric.update(EMBEDDINGS.float(), LABELS, **given)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"is_query": IS_QUERY},
        {"is_query": IS_QUERY, "is_gallery": IS_GALLERY},
        {"is_query": IS_QUERY, "is_gallery": ~IS_QUERY, "groups": GROUPS},
    ],
)
@pytest.mark.parametrize("part_size", [7, 4096])
def test_the_scores_are_those_of_retrieval_scores(pieces, given, part_size):
    found = score_in_parts(pieces, LABELS, **given, scores=ALL, ks=(1, 5), part_size=part_size)
    assert found == pytest.approx(expected(**given), abs=1e-7)


def test_recall_is_that_of_a_loop(pieces):
    """In float64, item by item."""
    unit = EMBEDDINGS.double() / EMBEDDINGS.double().norm(dim=1, keepdim=True)
    hits = []
    for query in range(97):
        others = torch.arange(97) != query
        similarity, relevant = (unit @ unit[query])[others], (LABELS[query] == LABELS)[others]
        if relevant.any():
            hits.append(relevant[similarity.argsort(descending=True)[:4]].any())
    assert score_in_parts(pieces, LABELS, scores="recall", ks=4) == {
        "recall@4": pytest.approx(np.mean(hits), abs=1e-12)
    }


def work(rank, world, folder, pieces, results):
    """Process `rank` of `world`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    searched = []
    original = module._score_part
    module._score_part = lambda *args: searched.append(args[2].tolist()) or original(*args)
    scores = score_in_parts(pieces, LABELS, scores=ALL, ks=(1, 5), part_size=10, results=results)
    torch.save((scores, searched), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def in_processes(world, folder, pieces, results=None):
    """The scores of each process, and the queries that each has searched."""
    folder.mkdir()
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, world, folder, pieces, results)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return zip(*(torch.load(folder / f"{rank}.pt") for rank in range(world)), strict=True)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_parts_and_get_the_same_scores(pieces, tmp_path, world):
    scores, searched = in_processes(world, tmp_path / "run", pieces)
    for found in scores:
        assert found == pytest.approx(expected(), abs=1e-7)
        assert found == scores[0]
    counts = [sum(map(len, parts)) for parts in searched]
    assert sum(counts) == 97
    assert max(counts) <= 10 * -(-10 // world)  # ten parts
    assert sorted(query for parts in searched for part in parts for query in part) == [*range(97)]


def test_an_interrupted_run_continues(pieces, tmp_path, monkeypatch):
    """With another number of processes."""
    arguments = {"scores": ALL, "ks": (1, 5), "part_size": 10, "results": tmp_path / "results"}
    original, searched = module._score_part, []

    def interrupted(*args):
        searched.append(len(args[2]))
        if len(searched) == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "_score_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_in_parts(pieces, LABELS, **arguments)
    monkeypatch.setattr(module, "_score_part", original)
    assert len(list((tmp_path / "results").glob("part-*.npz"))) == 3
    scores, searched = in_processes(2, tmp_path / "run", pieces, tmp_path / "results")
    assert scores[0] == pytest.approx(expected(), abs=1e-7)
    assert sum(len(part) for parts in searched for part in parts) == 67  # not the thirty that were saved
    monkeypatch.setattr(module, "_score_part", None)  # nothing is left to search
    assert score_in_parts(pieces, LABELS, **arguments) == pytest.approx(expected(), abs=1e-7)


def test_results_hold_each_query(pieces, tmp_path):
    score_in_parts(pieces, LABELS, scores=("recall", "mrr"), ks=(1,), part_size=30, results=tmp_path / "results")
    parts = [dict(np.load(file)) for file in sorted((tmp_path / "results").glob("part-*.npz"))]
    queries = np.concatenate([part["queries"] for part in parts])
    metric = RetrievalScores(("recall", "mrr"), (1,))
    metric.update(EMBEDDINGS.float(), LABELS)
    result = metric.search()
    assert sorted(queries.tolist()) == result.queries.tolist()
    classes = [LABELS[part["queries"]] for part in parts]  # a part has few
    assert all(part.max() <= following.min() for part, following in itertools.pairwise(classes))
    mrr = np.concatenate([part["mrr"] for part in parts])[queries.argsort()]
    np.testing.assert_allclose(mrr, result.scores["mrr"])


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": LABELS.flip(0)},
        {"is_query": IS_QUERY},
        {"is_gallery": IS_GALLERY},
        {"groups": GROUPS},
        {"scores": ("recall", "map@r")},
        {"ks": (1, 3)},
        {"part_size": 50},
        {"embeddings": EMBEDDINGS.where(torch.arange(97)[:, None] < 60, -EMBEDDINGS)},
    ],
)
def test_results_of_others_are_kept(tmp_path, changed, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 30)  # of 97 embeddings
    arguments = {"embeddings": EMBEDDINGS, "labels": LABELS, "ks": (1, 5), "part_size": 40, "results": tmp_path}
    score_in_parts(**arguments)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match="holds results of other embeddings, queries, scores or settings: pass another"
    ):
        score_in_parts(**(arguments | changed))
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_an_interrupted_write_leaves_no_result(tmp_path, monkeypatch):
    def interrupted(file, **_):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_in_parts(EMBEDDINGS, LABELS, results=tmp_path)
    monkeypatch.undo()
    score_in_parts(EMBEDDINGS, LABELS, results=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-000000.npz", "settings.json"]


def test_a_damaged_result_is_reported(tmp_path):
    score_in_parts(EMBEDDINGS, LABELS, part_size=40, results=tmp_path)
    os.truncate(tmp_path / "part-000001.npz", 100)
    with pytest.raises(ValueError, match=r"part-000001.npz is damaged: delete it to search these queries again"):
        score_in_parts(EMBEDDINGS, LABELS, part_size=40, results=tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds results of other embeddings"):
        score_in_parts(EMBEDDINGS, LABELS, part_size=40, results=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": torch.arange(97)}, "None of the 97 queries has a same-class item in the gallery of 97 items"),
        ({"is_query": torch.zeros(97, dtype=torch.bool)}, "None of the 97 items is a query"),
        ({"labels": LABELS[:90]}, re.escape("labels must be of shape (97,), one for each item, got (90,)")),
        ({"is_query": LABELS}, "is_query must be"),
        ({"part_size": 0}, "part_size must be at least 1, got 0"),
        ({"scores": "accuracy"}, "scores must be distinct names from"),
        ({"embeddings": EMBEDDINGS.where(LABELS[:, None] != 4, torch.nan)}, "embeddings contain NaN or infinity"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        score_in_parts(**({"embeddings": EMBEDDINGS, "labels": LABELS} | given))


@pytest.mark.parametrize("wrong", [0, 12, 47, 96])
@pytest.mark.parametrize("world", [1, 2])
def test_each_process_refuses_what_one_has_found(wrong, world, monkeypatch):
    """Each process reads its blocks only; here they take turns, and see the sum over both."""
    monkeypatch.setattr(module, "BLOCK_SIZE", 16)
    embeddings = EMBEDDINGS.where(torch.arange(97)[:, None] != wrong, torch.inf)
    found = [0] * world
    for _ in range(2):  # the first round finds what the second one sums
        total, found = sum(found), []
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda part, total=total: part.copy_(total or part))
        for rank in range(world):
            monkeypatch.setattr(module, "_rank_and_world_size", lambda rank=rank: (rank, world))
            found.append(1)
            with suppress(ValueError):
                module._check_finite(EmbeddingBlocks(embeddings))
                found[-1] = 0
        assert total or sum(found) == 1
    assert found == [1] * world


def test_drawn_queries_are_queries():
    drawn = drawn_queries(97, IS_QUERY, 20)
    assert int(drawn.sum()) == 20
    assert not (drawn & ~IS_QUERY).any()
    assert torch.equal(drawn, drawn_queries(97, IS_QUERY, 20))
    assert not torch.equal(drawn, drawn_queries(97, IS_QUERY, 20, seed=1))
    assert torch.equal(drawn_queries(97, IS_QUERY, 1000), IS_QUERY)
    assert drawn_queries(97, None, None) is None
    with pytest.raises(ValueError, match="queries must be at least 1, got 0"):
        drawn_queries(97, None, 0)
