import numpy as np
import pytest
import torch

from lightning_recall.compression.approximate import (
    IndexRecipe,
    approximate_index,
    exact_index,
    index_bytes,
    index_recipes,
)
from lightning_recall.compression.variants import BINARY, Source
from lightning_recall.search import EmbeddingBlocks

faiss = pytest.importorskip("faiss")  # an extra


@pytest.fixture(scope="module")
def source():
    embeddings = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    return Source(embeddings, EmbeddingBlocks(embeddings))


@pytest.mark.parametrize("storage", ["full", "half", "int8"])
def test_exact_indexes_store_what_is_scored(source, storage):
    variant = getattr(source, storage)()
    queries = variant.queries.block(0, 30)
    items = variant.items.block(0, 400) * (variant.items.scale or 1)
    similarities, positions = exact_index(variant.items, variant.storage).search(queries.numpy(), 5)
    expected = (queries @ items.T).topk(5)
    np.testing.assert_allclose(similarities, expected.values, rtol=1e-5)
    np.testing.assert_array_equal(positions, expected.indices)
    index = exact_index(variant.items, variant.storage)
    assert index.code_size == variant.bytes_per_image


def test_binary_codes_of_any_length_are_stored(source):
    variant = source.binary(center=True)
    index = exact_index(variant.items, BINARY)
    assert (index.d, index.code_size, variant.bytes_per_image) == (24, 3, 3)


def test_a_search_of_all_lists_is_exact(source):
    recipe = IndexRecipe("IVF8,Flat", {"nprobe": 8}, 8)
    items = EmbeddingBlocks(source.embeddings)
    index, trained_bytes = approximate_index(items, source.fit, recipe)
    queries = items.block(0, 30)
    np.testing.assert_array_equal(
        index.search(queries.numpy(), 5)[1], (queries @ items.block(0, 400).T).topk(5).indices
    )
    assert index_bytes(index) == len(faiss.serialize_index(index))
    assert (index_bytes(index) - trained_bytes) / 400 == pytest.approx(20 * 4 + 8, abs=1)  # and an id of 8 bytes


@pytest.mark.parametrize(("num_items", "dim"), [(1, 2), (30, 7), (400, 20), (60_502, 512)])
def test_recipes_fit_their_gallery(num_items, dim):
    for recipe in index_recipes(num_items, dim):
        index = faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
        assert index.d == dim
        assert recipe.settings.get("nprobe", 1) <= getattr(index, "nlist", 1)
    assert recipe.method.startswith("IVF")


def test_settings_reach_the_index(source):
    items = EmbeddingBlocks(source.embeddings)
    index, _ = approximate_index(items, source.fit, IndexRecipe("HNSW8", {"efSearch": 77}))
    assert index.hnsw.efSearch == 77
    index, _ = approximate_index(items, source.fit, IndexRecipe("IVF8,Flat", {"nprobe": 3}, 8))
    assert index.nprobe == 3


def test_training_prints_no_warnings(source, capfd):
    approximate_index(EmbeddingBlocks(source.embeddings), source.fit, IndexRecipe("IVF16,PQ2x4", {}))
    approximate_index(EmbeddingBlocks(source.embeddings), source.fit, IndexRecipe("PQ2", {}))
    assert capfd.readouterr() == ("", "")
