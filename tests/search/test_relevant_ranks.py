import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_recall.search import EmbeddingBlocks
from lightning_recall.search import count_ahead as count_module
from lightning_recall.search import ranks as ranks_module
from lightning_recall.search import relevant_ranks as module
from lightning_recall.search import thresholds as thresholds_module
from lightning_recall.search.count_ahead import Processes
from lightning_recall.search.ranks import QueryItemPairs, full_precision
from lightning_recall.search.relevant_ranks import LabelledEmbeddings, rank_by_label, rank_leave_one_out, rank_pairs


def ranks_by_loops(queries, gallery, relevant, is_ignored, tie=1e-13):
    """{query: ascending ranks}: every pair compared in float64, one at a time."""
    found = {}
    for q in range(len(queries)):
        s = [float(np.dot(queries[q], z)) for z in gallery]
        wrong = [s[z] for z in range(len(gallery)) if not relevant[q, z] and not is_ignored[q, z]]
        right = sorted((s[z] for z in np.flatnonzero(relevant[q])), reverse=True)
        ranks = [sum(w >= at - tie for w in wrong) + place + 1 for place, at in enumerate(right)]
        if ranks:
            found[q] = ranks
    return found


def as_dict(parts):
    found = {}
    for part in parts:
        for query, rank in zip(part.queries[part.query_position].tolist(), part.rank.tolist(), strict=True):
            found.setdefault(query, []).append(rank)
    return found


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    num_queries=st.integers(1, 30),
    num_items=st.integers(1, 40),
    num_classes=st.integers(1, 8),
    many=st.sampled_from([0, 40]),
    first=st.booleans(),
)
def test_ranks_equal_those_of_loops(data, num_queries, num_items, num_classes, many, first):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # few different vectors, so that many pairs tie
    vectors = rng.normal(size=(data.draw(st.integers(1, 12)), 3)).round(1)
    queries, gallery = (vectors[rng.integers(len(vectors), size=n)] for n in (num_queries, num_items))
    labels, others = (rng.integers(num_classes, size=n) for n in (num_queries, num_items))
    ids, groups, item_groups = np.arange(num_queries), *(rng.integers(3, size=n) for n in (num_queries, num_items))
    item_ids = rng.permutation(100)[:num_items]
    same = labels[:, None] == others
    own = same & ((ids[:, None] == item_ids) | (groups[:, None] == item_groups))
    expected = ranks_by_loops(unit(queries), unit(gallery), same & ~own, own)
    cut = sorted(rng.integers(num_items + 1, size=2))
    pieces = [gallery[: cut[0]], torch.from_numpy(gallery[cut[0] : cut[1]]), gallery[cut[1] :]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds_module, "MANY_THRESHOLDS", many)
        patch.setattr(ranks_module, "QUERIES_PER_BLOCK", data.draw(st.integers(1, 9)))
        patch.setattr(ranks_module, "ITEMS_PER_BLOCK", data.draw(st.integers(1, 9)))
        patch.setattr(ranks_module, "FLOAT64_PAIRS", data.draw(st.integers(1, 50)))
        patch.setattr(module, "MAX_QUERIES", data.draw(st.integers(1, 20)))
        patch.setattr(module, "MAX_PAIRS", data.draw(st.integers(1, 100)))
        sides = [
            LabelledEmbeddings(EmbeddingBlocks(rows), *map(torch.from_numpy, parts))
            for rows, parts in ((queries, (labels, ids, groups)), (pieces, (others, item_ids, item_groups)))
        ]
        count = data.draw(st.integers(1, 4))
        found = as_dict(part for number in range(count) for part in rank_by_label(*sides, (number, count), first))
    assert found == {query: ranks[:1] if first else ranks for query, ranks in expected.items()}


def leave_one_out_of_processes(items, world, first):
    """The ranks of each process, one after the other: the first round finds what they sum, the second sums it."""
    parts = []
    for rank in range(world):
        list(rank_leave_one_out(items, Processes(rank, world, lambda part: parts.append(part) or part), first))
    total = sum(parts) if parts else None  # nothing is summed where each searches its part of the queries
    return [
        ranks
        for rank in range(world)
        for ranks in rank_leave_one_out(items, Processes(rank, world, lambda _: total), first)
    ]


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    num_items=st.integers(1, 40),
    num_classes=st.integers(1, 8),
    many=st.sampled_from([0, 40]),
    first=st.booleans(),
    normalize=st.booleans(),
    world=st.integers(1, 3),
)
def test_leave_one_out_equals_loops(data, num_items, num_classes, many, first, normalize, world):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    # few different vectors, so that many pairs tie
    vectors = rng.normal(size=(data.draw(st.integers(1, 30)), 3)).round(1).astype(dtype)
    embeddings = vectors[rng.integers(len(vectors), size=num_items)]
    labels, groups = rng.integers(num_classes, size=num_items) ** 2 // num_classes, rng.integers(9, size=num_items)
    same = labels[:, None] == labels
    ignored = same & ((np.arange(num_items)[:, None] == np.arange(num_items)) | (groups[:, None] == groups))
    exact = embeddings.astype(np.float64)
    exact = unit(exact) if normalize else exact / (np.linalg.norm(exact, axis=1).max() or 1)
    expected = ranks_by_loops(exact, exact, same & ~ignored, ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds_module, "MANY_THRESHOLDS", many)
        patch.setattr(ranks_module, "SQUARE_BLOCK", data.draw(st.integers(1, 9)))
        patch.setattr(ranks_module, "SIMILARITIES_PER_COUNT", data.draw(st.integers(1, 50)))
        patch.setattr(ranks_module, "FLOAT64_ROWS", data.draw(st.integers(1, 9)))
        patch.setattr(count_module, "FLOAT64_PAIRS", data.draw(st.integers(1, 50)))
        patch.setattr(count_module, "BLOCKS_IN_MEMORY", data.draw(st.integers(1, 3)))
        patch.setattr(module, "MAX_PAIRS", data.draw(st.sampled_from([50, 2000])))
        columns = map(torch.from_numpy, (labels, np.arange(num_items), groups))
        items = LabelledEmbeddings(EmbeddingBlocks(embeddings, normalize), *columns)
        found = as_dict(leave_one_out_of_processes(items, world, first))
    assert found == {query: ranks[:1] if first else ranks for query, ranks in expected.items()}


@pytest.mark.parametrize("many", [0, 100])
def test_leave_one_out_ranks_are_those_of_float64(many, monkeypatch):
    """Similarities of float32 alone give other ranks, in rows and in columns of the matrix."""
    monkeypatch.setattr(thresholds_module, "MANY_THRESHOLDS", many)
    monkeypatch.setattr(ranks_module, "SQUARE_BLOCK", 64)
    monkeypatch.setattr(ranks_module, "SIMILARITIES_PER_COUNT", 640)
    embeddings = torch.randn(64, dtype=torch.float64) + 1e-3 * torch.randn(300, 64, dtype=torch.float64)
    labels = torch.arange(300) // 3
    exact = unit(embeddings.numpy())
    same, own = (labels[:, None] == labels).numpy(), np.eye(300, dtype=bool)
    items = LabelledEmbeddings(EmbeddingBlocks(embeddings), labels, torch.arange(300))
    found = list(rank_leave_one_out(items))
    assert as_dict(found) == ranks_by_loops(exact, exact, same & ~own, own, tie=1e-14)
    single = torch.from_numpy(exact).float()
    in_float32 = (single @ single.T).numpy()
    naive = [sum(in_float32[q][~same[q]] >= in_float32[q][same[q] & ~own[q]].max()) + 1 for q in range(300)]
    exact_first = {q: ranks[0] for q, ranks in as_dict(found).items()}
    assert sum(exact_first[q] != naive[q] for q in range(150)) > 5
    assert sum(exact_first[q] != naive[q] for q in range(150, 300)) > 5


def test_each_item_of_the_ranks_is_relevant():
    labels = torch.randint(0, 9, (50,))
    (ranks,) = rank_leave_one_out(LabelledEmbeddings(EmbeddingBlocks(torch.randn(50, 3)), labels, torch.arange(50)))
    queries = ranks.queries[ranks.query_position]
    assert torch.equal(labels[ranks.item], labels[queries])
    assert (ranks.item != queries).all()
    assert len({*zip(queries.tolist(), ranks.item.tolist(), strict=True)}) == int(ranks.num_relevant.sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("many", [0, 40])
def test_ranks_are_those_of_float64(dtype, many, monkeypatch):
    """Items whose similarities to every query differ from the relevant one's by less than float32 resolves."""
    monkeypatch.setattr(thresholds_module, "MANY_THRESHOLDS", many)
    dim, num_items = 64, 400
    base = torch.randn(dim, dtype=torch.float64)
    step = {torch.float64: 1e-7, torch.float32: 1e-7, torch.float16: 1e-3}[dtype]
    gallery = (base + step * torch.randn(num_items, dim, dtype=torch.float64)).to(dtype)
    queries = (base + torch.randn(50, dim, dtype=torch.float64)).to(dtype)
    relevant = torch.zeros(50, num_items, dtype=torch.bool).scatter_(1, torch.randint(num_items, (50, 3)), 1)
    pairs = QueryItemPairs(*relevant.nonzero().unbind(1))
    rows, items = unit(queries.double().numpy()), unit(gallery.double().numpy())
    similarity = torch.from_numpy((rows[pairs.query] * items[pairs.item]).sum(1))
    in_fp32 = torch.from_numpy(rows).float() @ torch.from_numpy(items).float().T
    expected = ranks_by_loops(rows, items, relevant.numpy(), ~relevant.numpy() & False, tie=1e-14)
    with full_precision(torch.device("cpu")):
        found = rank_pairs(
            EmbeddingBlocks(queries), EmbeddingBlocks(gallery), pairs, similarity, torch.zeros(len(similarity)).bool()
        )
    assert as_dict([found]) == expected
    if dtype != torch.float16:  # float32 resolves steps of float16
        by_fp32 = {q: sorted(((in_fp32[q] >= in_fp32[q, z]).sum()) for z in relevant[q].nonzero()) for q in range(50)}
        assert sum(by_fp32[q][0] != expected[q][0] for q in range(50)) > 5


def test_full_precision_restores_the_setting():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_rounding_error_of_float32_is_below_half_the_tolerance():
    for dim in (2, 64, 512, 4096):
        vectors = np.random.default_rng(dim).normal(size=(300, dim)) + 1  # similar ones: the sums grow
        rows = torch.from_numpy(unit(vectors))
        single = rows.float() @ rows.float().T
        worst = float((single.double() - rows @ rows.T).abs().max())
        assert (
            worst
            < ranks_module.RankCounter(
                torch.ones(1), torch.ones(1).long(), torch.zeros(1).long(), dim, (1, 1)
            ).tolerance
            / 2
        )


def test_the_progress_bar_is_shown_if_it_is_requested(capsys, monkeypatch):
    rows = LabelledEmbeddings(EmbeddingBlocks(torch.randn(40, 3)), torch.arange(40) // 2, torch.arange(40))
    list(rank_by_label(rows, rows, progress=False))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "PROGRESS_BAR_OPTIONS", {**module.PROGRESS_BAR_OPTIONS, "delay": 0, "leave": True})
    list(rank_by_label(rows, rows, progress=True))
    assert "100%" in capsys.readouterr().err
