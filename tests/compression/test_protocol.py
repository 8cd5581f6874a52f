from pathlib import Path

import pytest
import torch

from lightning_recall.compression.protocol import RetrievalProtocol
from lightning_recall.compression.searches import RescoredSearch, TorchSearch, exact_search, in_order
from lightning_recall.compression.variants import Source
from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.metrics import RetrievalScores
from lightning_recall.search import EmbeddingBlocks

NUM, DIM = 90, 16


def embedding_set(kind):
    """Ten uneven classes; one has a single image, so it is no query."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.cat([torch.arange(NUM - 1) % 10 // 2 * 2, torch.tensor([77])])
    embeddings = torch.randn(100, DIM, generator=generator)[labels] + torch.randn(NUM, DIM, generator=generator)
    known = EmbeddingSet(Path("shop"), embeddings, torch.arange(NUM), labels)
    if kind == "roles":
        is_query = torch.arange(NUM) % 3 == 0
        known = known._replace(is_query=is_query, is_gallery=~is_query)
    if kind == "overlapping roles":
        known = known._replace(is_query=torch.arange(NUM) % 3 < 2, is_gallery=torch.arange(NUM) % 3 > 0)
    if kind == "groups":
        known = known._replace(groups=torch.arange(NUM) // 12 % 3)
    return known


def reference(known, embeddings, ks=(1, 5)):
    metric = RetrievalScores(("recall", "map@r"), ks)
    metric.update(embeddings, known.labels, None, known.is_query, known.is_gallery, known.groups)
    return {name: float(value) for name, value in metric.compute().items()}


KINDS = ("leave-one-out", "roles", "overlapping roles", "groups")


@pytest.mark.parametrize("kind", KINDS)
def test_exact_scores_are_those_of_retrieval_scores(kind):
    known = embedding_set(kind)
    protocol, blocks = RetrievalProtocol(known, (1, 5)), EmbeddingBlocks(known.embeddings)
    assert protocol.exact_scores(blocks, blocks) == reference(known, known.embeddings)
    assert protocol.exact_scores(EmbeddingBlocks(known.embeddings), blocks) == reference(known, known.embeddings)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_an_exact_search_have_the_same_scores(kind):
    known = embedding_set(kind)
    protocol = RetrievalProtocol(known, (1, 5))
    variant = Source(known.embeddings, EmbeddingBlocks(known.embeddings)).full()
    in_torch = TorchSearch(variant.queries, in_order(variant.items, protocol.gallery))
    for search in (in_torch, exact_search(variant, protocol.gallery)):
        assert protocol.list_scores(search) == pytest.approx(reference(known, known.embeddings))


@pytest.mark.parametrize("kind", KINDS)
def test_hamming_scores_are_those_of_signs(kind):
    """With ties: of 16 bits, many distances are equal."""
    known = embedding_set(kind)
    protocol = RetrievalProtocol(known, (1, 5))
    variant = Source(known.embeddings, EmbeddingBlocks(known.embeddings)).binary(center=False)
    signs = torch.where(known.embeddings > 0, 1.0, -1.0)
    assert protocol.hamming_scores(variant.items) == pytest.approx(reference(known, signs))


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_items_do_not_use_up_candidates(kind):
    known = embedding_set(kind)
    protocol = RetrievalProtocol(known, (1, 5))
    variant = Source(known.embeddings, EmbeddingBlocks(known.embeddings)).full()
    items = in_order(variant.items, protocol.gallery)
    rescored = RescoredSearch(
        TorchSearch(variant.queries, items), variant.queries, items.block(0, len(items)).half(), 3
    )
    similarities, found = protocol.first(rescored, protocol.queries, 4)
    assert (similarities > -torch.inf).sum(1).tolist() == [12] * len(protocol.queries)
    for query, items in zip(protocol.queries.tolist(), found.tolist(), strict=True):
        assert len(set(items)) == 12
        assert query not in items
        if known.groups is not None:
            same = (known.groups[items] == known.groups[query]) & (known.labels[items] == known.labels[query])
            assert not same.any()


@pytest.mark.parametrize("kind", KINDS)
def test_some_queries_are_compared_with_the_whole_gallery(kind):
    known = embedding_set(kind)
    protocol, variant = RetrievalProtocol(known, (1, 5), 17), Source(known.embeddings, EmbeddingBlocks([])).full()
    every = RetrievalProtocol(known, (1, 5))
    assert len(set(protocol.queries.tolist()) & set(every.queries.tolist())) == len(protocol.queries) == 17
    assert protocol.queries.tolist() == sorted(RetrievalProtocol(known, (1, 5), 17).queries.tolist())
    assert protocol.num_queries == every.num_queries == len(every.queries)
    drawn = torch.zeros(NUM, dtype=torch.bool)
    drawn[protocol.queries] = True
    everything = torch.ones(NUM, dtype=torch.bool)
    known = known._replace(is_query=drawn, is_gallery=everything if known.is_gallery is None else known.is_gallery)
    assert protocol.exact_scores(variant.queries, variant.items) == reference(known, known.embeddings)
    search = exact_search(variant, protocol.gallery)
    assert protocol.list_scores(search) == pytest.approx(reference(known, known.embeddings))
    signs = Source(known.embeddings, EmbeddingBlocks([])).binary(center=False)
    expected = reference(known, torch.where(known.embeddings > 0, 1.0, -1.0))
    assert protocol.hamming_scores(signs.items) == pytest.approx(expected)


def test_ties_count_against_the_query_in_lists():
    labels = torch.tensor([0, 0, 1, 1])
    known = EmbeddingSet(Path("same"), torch.ones(4, 2), torch.arange(4), labels)
    protocol, blocks = RetrievalProtocol(known, (1, 2)), EmbeddingBlocks(known.embeddings)
    assert protocol.list_scores(TorchSearch(blocks, blocks))["recall@1"] == 0


@pytest.mark.parametrize(
    ("changes", "ks", "message"),
    [
        ({"labels": None}, (1,), "shop has no labels, so nothing is relevant: embed images with classes"),
        ({"labels": torch.arange(NUM)}, (1,), "No query of shop has another item of its class in the gallery"),
        ({"is_query": torch.zeros(NUM, dtype=torch.bool)}, (1,), "No query of shop"),
        ({}, (1, 90), "at most 89, the items that each query is compared with, got 90"),
        ({}, (0,), "each at least 1"),
    ],
)
def test_bad_input(changes, ks, message):
    with pytest.raises(ValueError, match=message):
        RetrievalProtocol(embedding_set("leave-one-out")._replace(**changes), ks)


def test_without_faiss_torch_searches(monkeypatch):
    monkeypatch.setattr("lightning_recall.compression.searches.has_faiss", lambda: False)
    known = embedding_set("leave-one-out")
    variant = Source(known.embeddings, EmbeddingBlocks(known.embeddings)).full()
    assert exact_search(variant, torch.arange(NUM)).engine == "torch"
