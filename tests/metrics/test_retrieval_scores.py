from fractions import Fraction

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from lightning_recall.metrics import RecallAtK, RetrievalScores, RevisitedMAP
from lightning_recall.metrics.revisited import GroundTruth
from lightning_recall.metrics.scores import AT_K, OVERALL
from lightning_recall.search import ranks as ranks_module

ALL = (*AT_K, *OVERALL)


def scores_by_sorting(embeddings, labels, ks, is_query=None, is_gallery=None, groups=None):
    """Every score from whole rankings, each by its definition; without ties."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    every = np.ones(len(labels), dtype=bool)
    is_query, is_gallery = (every if given is None else given for given in (is_query, is_gallery))
    groups = np.arange(len(labels)) if groups is None else groups
    found = []
    for q in np.flatnonzero(is_query):
        junk = (labels == labels[q]) & (groups == groups[q])
        junk[q] = True
        order = [z for z in np.argsort(-unit @ unit[q]) if is_gallery[z] and not junk[z]]
        right = labels[order] == labels[q]
        total = right.sum()
        if total:
            precision = [right[: i + 1].sum() / (i + 1) for i in range(len(order))]
            found.append(
                {f"recall@{k}": float(right[:k].any()) for k in ks}
                | {f"fraction_retrieved@{k}": right[:k].sum() / total for k in ks}
                | {f"precision@{k}": right[:k].sum() / k for k in ks}
                | {
                    "map@r": sum(precision[i] for i in range(total) if i < len(order) and right[i]) / total,
                    "r_precision": right[:total].sum() / total,
                    "map": sum(precision[i] for i in np.flatnonzero(right)) / total,
                    "mrr": 1 / (np.flatnonzero(right)[0] + 1),
                    "minp": total / (np.flatnonzero(right)[-1] + 1),
                }
            )
    return {name: np.mean([scores[name] for scores in found]) for name in found[0]}


@pytest.mark.parametrize("setting", ["leave-one-out", "query and gallery", "groups"])
def test_equals_whole_rankings(setting):
    embeddings, labels = torch.randn(200, 6, dtype=torch.float64), torch.randint(0, 30, (200,)) ** 2 // 30
    given = {}
    if setting != "leave-one-out":
        given["is_query"] = torch.rand(200) < 0.4
        given["is_gallery"] = ~given["is_query"] | (torch.rand(200) < 0.3)
    if setting == "groups":
        given["groups"] = torch.randint(0, 3, (200,))
    metric = RetrievalScores(ALL, ks=(1, 3, 500))
    for rows in torch.randperm(200).split(64):
        metric.update(embeddings[rows], labels[rows], rows, **{name: values[rows] for name, values in given.items()})
    arrays = {name: values.numpy() for name, values in given.items()}
    expected = scores_by_sorting(embeddings.numpy(), labels.numpy(), (1, 3, 500), **arrays)
    found = metric.compute()
    assert list(found) == list(expected)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-7)
    assert len(set(expected.values())) > 9


def test_average_precision_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    embeddings, labels = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) // 6
    metric = RetrievalScores(("map",))
    metric.update(embeddings, labels)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    others = ~torch.eye(60, dtype=torch.bool)
    expected = [
        average_precision_score((labels == labels[q])[others[q]], (unit @ unit[q])[others[q]]) for q in range(60)
    ]
    assert metric.compute()["map"].item() == pytest.approx(np.mean(expected), abs=1e-7)


def test_recall_and_mrr_need_only_the_first_relevant_item():
    embeddings, labels = torch.randn(90, 5), torch.arange(90) // 9
    few, all_scores = RetrievalScores(("recall", "mrr"), ks=(1, 5)), RetrievalScores(ALL, ks=(1, 5))
    for metric in (few, all_scores):
        metric.update(embeddings, labels)
    complete = all_scores.compute()
    assert few.compute() == {name: complete[name] for name in ("recall@1", "recall@5", "mrr")}


def test_the_search_result_holds_each_query():
    metric = RetrievalScores(("recall", "r_precision"), ks=(1,))
    embeddings = torch.tensor([[1.0, 0], [1, 0.2], [0.9, 0.5], [0, 1]])
    metric.update(embeddings, torch.tensor([7, 8, 7, 9]), torch.tensor([13, 12, 11, 10]))
    found = metric.search()
    assert found.indices.tolist() == [10, 11, 12, 13]
    assert torch.equal(found.embeddings, embeddings.flip(0))
    assert found.queries.tolist() == [1, 3]  # classes 8 and 9 have one item each
    assert found.first_ranks.tolist() == [2, 2]
    assert found.scores["recall@1"].tolist() == [0, 0]
    assert found.means() == metric.compute()


def test_in_a_collection_updates_are_shared():
    collection = MetricCollection([RecallAtK((1,)), RetrievalScores(("map@r",))])
    embeddings, labels = torch.randn(20, 4), torch.arange(20) // 4
    for rows in torch.arange(20).split(8):
        collection.update(embeddings[rows], labels[rows])
    assert collection.compute().keys() == {"recall@1", "map@r"}
    assert len(collection.compute_groups) == 1  # the embeddings are kept once


def test_mixed_types_and_small_integers():
    embeddings = torch.randn(30, 4)
    labels = torch.arange(30) // 3
    mixed, plain = RetrievalScores(), RetrievalScores()
    mixed.update(embeddings[:10].double(), labels[:10].int())
    mixed.update(embeddings[10:], labels[10:].to(torch.uint8))
    plain.update(embeddings, labels)
    assert mixed.compute() == plain.compute()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": ()}, "scores must be distinct names from recall, fraction_retrieved, precision, map@r"),
        ({"scores": ("recall@1",)}, "scores must be distinct names from"),
        ({"ks": (0,)}, "ks must contain"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RetrievalScores(**settings)


def test_wrong_batches_are_refused():
    metric = RetrievalScores()
    with pytest.raises(ValueError, match=r"labels must be integers, got torch.bool"):
        metric.update(torch.ones(2, 2), torch.ones(2).bool())
    with pytest.raises(ValueError, match=r"embeddings must be floating point, of 16, 32 or 64 bits, got torch.int64"):
        metric.update(torch.ones(2, 2).long(), torch.ones(2).long())
    metric.update(torch.ones(2, 2), torch.ones(2).long(), groups=torch.ones(2).long())
    with pytest.raises(ValueError, match="Pass groups to every update"):
        metric.update(torch.ones(2, 2), torch.ones(2).long())


def test_batches_of_other_dimensions_are_refused():
    metric = RetrievalScores()
    metric.update(torch.ones(2, 2), torch.ones(2).long())
    with pytest.raises(ValueError, match="embeddings have dimension 3, but earlier batches had dimension 2"):
        metric.update(torch.ones(2, 3), torch.ones(2).long())


def search_in_a_process(rank, world, folder, port_file, given):
    """Process `rank` of `world`: adds its part of the items, searches, and saves the result."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=world)
    embeddings, labels = example_for_processes()
    metric = RetrievalScores(ALL, ks=(1, 5))
    rows = torch.arange(rank, -(-101 // world) * world, world) % 101  # a distributed sampler repeats the last ones, too
    for part in rows.split(13):
        metric.update(embeddings[part], labels[part], part, **{name: values[part] for name, values in given.items()})
    ranks_module.SQUARE_BLOCK, ranks_module.QUERIES_PER_BLOCK = 7, 9
    computed, product = [], torch.mm
    torch.mm = lambda a, b, out: computed.append(len(a) * b.shape[1]) or product(a, b, out=out)
    with metric.sync_context():
        found = metric.search()
    torch.mm = product
    torch.save((metric.compute(), found, sum(computed)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def example_for_processes():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(101, 6, generator=generator), torch.randint(0, 20, (101,), generator=generator)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_processes_get_the_result_of_one_and_split_the_work(world, leave_one_out, tmp_path):
    context = torch.multiprocessing.get_context("fork")
    given = {} if leave_one_out else {"is_query": torch.arange(101) < 60}
    processes = [
        context.Process(target=search_in_a_process, args=(rank, world, tmp_path, tmp_path / "store", given))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    embeddings, labels = example_for_processes()
    alone = RetrievalScores(ALL, ks=(1, 5))
    alone.update(embeddings, labels, torch.arange(101), **given)
    expected, computed = alone.compute(), []
    for rank in range(world):
        scores, found, count = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert scores == expected  # to the last bit
        assert found.queries.tolist() == alone.search().queries.tolist()
        assert torch.equal(found.first_ranks, alone.search().first_ranks)
        assert found.queries.dtype == found.first_ranks.dtype == torch.int64
        computed.append(count)
    # 15 blocks of 7 items, of which half of the matrix is computed; or queries with items
    total = 101 * (101 + 7) / 2 if leave_one_out else 60 * 101
    assert 0.95 * total < sum(computed) <= total
    assert max(computed) < 1.1 * total / world


def test_equals_pytorch_metric_learnings_calculator():
    pytest.importorskip("faiss")  # an extra
    calculators = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")  # a test tool
    embeddings = torch.nn.functional.normalize(torch.randn(120, 8), dim=1)
    labels = torch.arange(120) // 6
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")
    theirs = calculators.AccuracyCalculator(include=names, k=119).get_accuracy(embeddings, labels)
    metric = RetrievalScores(("recall", "r_precision", "map@r", "mrr"), (1,))
    metric.update(embeddings, labels)
    found = [value.item() for value in metric.compute().values()]
    assert found == pytest.approx([theirs[name] for name in names], abs=1e-6)
    # It excludes the first neighbour instead of the query itself: no query retrieves a positive among the
    # duplicates of other classes here, but it reports that half do.
    twins = torch.eye(4).repeat_interleave(2, 0)
    metric.reset()
    metric.update(twins, torch.tensor([0, 1, 0, 1, 2, 3, 2, 3]))
    assert metric.compute()["recall@1"] == 0


def modes_of_products(monkeypatch, run):
    """(precision of fp32 products, autocast, gradients) in each product of a search."""
    modes, product = [], torch.mm

    def note(*args, **kwargs):
        modes.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return product(*args, **kwargs)

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch, "mm", note)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            run()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    return modes


def test_each_product_of_a_search_is_true_fp32(monkeypatch):
    metric = RetrievalScores()
    metric.update(torch.randn(30, 4), torch.arange(30) // 3)
    landmarks = RevisitedMAP([GroundTruth([0], [1], [2])])
    landmarks.update(torch.randn(9, 4), torch.arange(9), torch.arange(9))
    for run in (metric.search, landmarks.search):
        assert modes_of_products(monkeypatch, run) == [("highest", False, False)]


def test_nearest_is_that_of_float32_under_autocast():
    metric = RetrievalScores(ks=1)
    metric.update(torch.randn(40, 64), torch.arange(40) // 4)
    found = metric.search()
    expected = found.nearest(found.queries, 5)
    with torch.autocast("cpu", torch.bfloat16):
        values, rows = found.nearest(found.queries, 5)
    assert torch.equal(rows, expected[1])
    assert torch.equal(values, expected[0])


def test_similarities_are_dot_products_without_normalization():
    embeddings = 5 * torch.randn(12, 3)
    metric = RetrievalScores(ks=1, normalize=False)
    metric.update(embeddings, torch.arange(12) // 4)
    found = metric.search()
    dots = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)
    values, rows = found.nearest(found.queries, 3)
    torch.testing.assert_close(values, dots.topk(3).values, atol=1e-4, rtol=0)
    assert torch.equal(rows, dots.topk(3).indices)


def exact_first_ranks(embeddings, labels, num_queries):
    """Ranks of the first relevant item from integers: of 0/1 vectors, s_qz^2 n_q = (q z)^2 / n_z."""
    rows, ranks = embeddings.long().numpy().astype(object), []
    for q in range(num_queries):
        squares = [Fraction(int(rows[q] @ z) ** 2, int(z @ z)) for z in rows]
        best = max(squares[z] for z in range(len(rows)) if z != q and labels[z] == labels[q])
        ahead = [z for z in range(len(rows)) if labels[z] != labels[q] and squares[z] >= best]
        ranks.append(len(ahead) + 1)
    return ranks


def test_ranks_do_not_depend_on_the_number_of_queries():
    """Binary vectors have ties, and similarities that differ by less than fp32 resolves."""
    generator = torch.Generator().manual_seed(0)
    embeddings = (torch.rand(200, 300, generator=generator) < 0.5).float()
    labels = torch.arange(200) // 5
    expected = exact_first_ranks(embeddings, labels, 40)
    assert len(set(expected)) > 10
    for count in (1, 10, 40):
        metric = RetrievalScores(ks=1)
        metric.update(embeddings, labels, is_query=torch.arange(200) < count)
        assert metric.search().first_ranks.tolist() == expected[:count]


def test_large_labels_need_no_more_memory_and_are_deterministic():
    """No tensor is as long as the largest label; deterministic algorithms are supported."""
    embeddings, labels = torch.randn(30, 4), torch.arange(30) // 3
    plain, large = RetrievalScores(ALL), RetrievalScores(ALL)
    plain.update(embeddings, labels)
    large.update(embeddings, labels * 10**15, indices=torch.arange(30) * 10**15, groups=torch.arange(30) * 10**15)
    try:
        torch.use_deterministic_algorithms(True)
        assert large.compute() == plain.compute()
    finally:
        torch.use_deterministic_algorithms(False)


def test_items_without_a_query_are_rejected():
    metric = RecallAtK(1)
    metric.update(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), is_query=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="is_query is False for all 4 items: there is no query to score"):
        metric.compute()
