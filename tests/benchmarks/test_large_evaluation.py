import re

import numpy as np
import pytest

from lightning_recall.benchmarks import large_evaluation
from lightning_recall.embedding_sets import read_embedding_set
from lightning_recall.metrics import RetrievalScores


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The folder of a small benchmark, and what it printed: at first, and once everything is saved."""
    folder = tmp_path_factory.mktemp("large")
    sizes = ["--items", "3000", "--dim", "8", "--shard-size", "1000", "--queries", "100", "--part-size", "30"]
    arguments = ["--folder", str(folder), *sizes, "--processes", "1", "--check", "20"]
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(large_evaluation.Console, "print", lambda _, text: lines.append(text))
        patch.setattr(large_evaluation, "run_processes", in_this_process)
        large_evaluation.main(arguments)
        large_evaluation.main(arguments)
    return folder, lines


def in_this_process(options):
    """What the only process reports, without torch.distributed."""
    reports = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("init_process_group", "destroy_process_group"):
            patch.setattr(f"torch.distributed.{name}", lambda *_, **__: None)
        patch.setattr("torch.set_num_threads", lambda _: None)
        large_evaluation.score(0, options, type("Queue", (), {"put": staticmethod(reports.append)}))
    return reports


def cells(table):
    return dict(zip(*(list(column.cells) for column in table.columns), strict=True))


def test_the_table_holds_the_scores_and_says_what_was_searched(printed):
    folder, (_, first, checked, _, second, _) = printed
    items, queries = read_embedding_set(folder / "embeddings"), []
    for file in (folder / "results-100-30").glob("part-*.npz"):
        queries += np.load(file)["queries"].tolist()
    is_query = items.ids.new_zeros(3000, dtype=bool)
    is_query[queries] = True
    metric = RetrievalScores("recall", 1)
    metric.update(items.embeddings, items.labels, is_query=is_query)
    assert len(queries) == 100
    assert cells(first)["recall@1"] == cells(second)["recall@1"] == f"{100 * float(metric.compute()):.2f} %"
    assert cells(first)["queries, searched now"] == "100, 100"
    assert cells(second)["queries, searched now"] == "100, 0"
    assert checked == "Ranks of 20 queries are equal to those of a search in float64."
    memory = "anonymous memory of a process, MiB: start, peak"
    start, peak = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", cells(first)[memory]))
    assert 0 < start <= peak


def test_a_wrong_rank_is_found(printed):
    folder, _ = printed
    file = min((folder / "results-100-30").glob("part-*.npz"))
    arrays = dict(np.load(file))
    np.savez(file, **(arrays | {"mrr": arrays["mrr"] / 2}))
    options = type("Options", (), {"folder": folder, "queries": 100, "part_size": 30, "check": 100})
    with pytest.raises(ValueError, match="differ from those of the reference"):
        large_evaluation.check_ranks(options)
