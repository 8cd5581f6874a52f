import numpy as np
import pytest
import torch

from lightning_recall.search import EmbeddingBlocks, LabelledEmbeddings, pair_similarities
from lightning_recall.search.count_ahead import Processes
from lightning_recall.search.pair_similarities import NUM_BINS, PairSimilarities, bin_edges, bin_of


def items_of(size, seed=0, groups=False, ids=None):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (size,), generator=generator)
    cameras = torch.randint(0, 3, (size,), generator=generator) if groups else None
    return LabelledEmbeddings(EmbeddingBlocks(embeddings), labels, torch.arange(size) if ids is None else ids, cameras)


def pairs_by_loop(queries, gallery=None):
    """Sorted (float32 similarity, is genuine) of each pair."""
    one_set = gallery is None
    gallery = queries if one_set else gallery
    q, g = (blocks.embeddings.select(torch.arange(len(blocks.labels))).numpy() for blocks in (queries, gallery))
    found = []
    for i in range(len(q)):
        for j in range(i + 1 if one_set else 0, len(g)):
            genuine = bool(queries.labels[i] == gallery.labels[j])
            same_group = queries.groups is not None and bool(queries.groups[i] == gallery.groups[j])
            if genuine and (queries.ids[i] == gallery.ids[j] or same_group):
                continue
            found.append((np.float32((q[i] * g[j]).sum()), genuine))
    return sorted(found)


def selected(pairs, is_selected=None):
    everything = torch.ones(NUM_BINS, dtype=torch.bool)
    exact = pairs.select(everything if is_selected is None else is_selected)
    return sorted(zip(exact.similarities.numpy(), exact.is_genuine.tolist(), strict=True)), exact


@pytest.fixture(params=[(1024, 1024), (7, 7)], ids=str)
def block_shape(request, monkeypatch):
    monkeypatch.setattr(pair_similarities, "square_block_shape", lambda _: request.param)
    monkeypatch.setattr(pair_similarities, "block_shape", lambda _: request.param)


@pytest.mark.usefixtures("block_shape")
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("one_set", [False, True])
def test_each_pair_counts_once(one_set, groups):
    queries = items_of(40, 0, groups)
    gallery = None if one_set else items_of(33, 1, groups, ids=torch.arange(20, 53))  # 20 queries are in the gallery
    if gallery is not None:
        gallery.labels[:20] = queries.labels[20:]
    expected = pairs_by_loop(queries, gallery)
    pairs = PairSimilarities(queries, gallery)
    found, exact = selected(pairs)
    assert found == expected
    histogram = pairs.histogram()
    for kind, is_kind in enumerate((exact.is_genuine, ~exact.is_genuine)):
        assert torch.equal(histogram[kind], torch.bincount(exact.bins[is_kind], minlength=NUM_BINS))
    assert (np.abs(exact.bins.numpy() - bin_of(exact.similarities.numpy())) <= pairs.margin).all()


@pytest.mark.usefixtures("block_shape")
def test_few_selected_bins_hold_their_pairs():
    pairs = PairSimilarities(items_of(60))
    _, everything = selected(pairs)
    is_selected = torch.zeros(NUM_BINS, dtype=torch.bool)
    is_selected[everything.bins[::100].long()] = True
    found, exact = selected(pairs, is_selected)
    kept = is_selected[everything.bins.long()]
    assert 0 < kept.sum() < 100
    expected = zip(everything.similarities[kept].numpy(), everything.is_genuine[kept].tolist(), strict=True)
    assert found == sorted(expected)
    assert is_selected[exact.bins.long()].all()


def test_processes_share_the_pairs(monkeypatch):
    monkeypatch.setattr(pair_similarities, "square_block_shape", lambda _: (7, 7))
    items = items_of(40)
    parts = [PairSimilarities(items, processes=Processes(rank, 3, torch.Tensor.clone)) for rank in range(3)]
    whole = PairSimilarities(items)
    assert torch.equal(sum(part.histogram() for part in parts), whole.histogram())
    everything = torch.ones(NUM_BINS, dtype=torch.bool)
    counts = [len(part.select(everything).bins) for part in parts]
    assert sum(counts) == 40 * 39 // 2
    assert min(counts) > 100


def test_bins_are_those_between_the_edges():
    edges = bin_edges()
    assert bin_of(edges[[5, 300, -1]] + 1e-9).tolist() == [5, 300, NUM_BINS - 1]
    assert bin_of(edges[[5, 300, -1]] - 1e-9).tolist() == [4, 299, NUM_BINS - 2]


def test_broken_embeddings_are_refused():
    items = items_of(10)
    items.embeddings.pieces[0][3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        PairSimilarities(items).histogram()
