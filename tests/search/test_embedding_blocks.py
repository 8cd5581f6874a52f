import numpy as np
import pytest
import torch

from lightning_recall.search import EmbeddingBlocks


def test_pieces_of_any_type_form_one_matrix(tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16)
    np.save(tmp_path / "part.npy", embeddings[5:20])
    on_disk = np.load(tmp_path / "part.npy", mmap_mode="r")
    blocks = EmbeddingBlocks(
        [torch.from_numpy(embeddings[:5]), on_disk, embeddings[20:20], embeddings[20:].astype(np.float64)]
    )
    unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    assert len(blocks) == 30
    np.testing.assert_allclose(blocks.block(3, 23), unit[3:23], atol=1e-6)
    assert blocks.block(3, 23).dtype == torch.float32
    indices = torch.tensor([29, 0, 6, 6, 20, 4])
    np.testing.assert_allclose(blocks.select(indices), unit[indices], atol=1e-15)


def test_without_normalization_all_are_divided_by_the_largest_norm():
    embeddings = torch.randn(9, 3, dtype=torch.float64) * 1e30  # their squares overflow in float32
    blocks = EmbeddingBlocks(embeddings, normalize=False)
    lengths = blocks.select(torch.arange(9)).norm(dim=1)
    assert lengths.max() == pytest.approx(1)
    torch.testing.assert_close(lengths * embeddings.norm(dim=1).max(), embeddings.norm(dim=1))
    assert torch.isfinite(blocks.block(0, 9)).all()


def test_norms_of_large_float16_numbers_do_not_overflow():
    embeddings = torch.full((2, 512), 60_000.0, dtype=torch.float16)
    torch.testing.assert_close(EmbeddingBlocks(embeddings).block(0, 2), torch.full((2, 512), 512**-0.5))
    assert torch.equal(EmbeddingBlocks(torch.zeros(2, 4)).block(0, 2), torch.zeros(2, 4))


def test_pieces_of_different_shapes_are_refused():
    for pieces in ([torch.ones(2, 3), torch.ones(2, 4)], [torch.ones(3)]):
        with pytest.raises(ValueError, match=r"matrices \(N, D\) with the same D"):
            EmbeddingBlocks(pieces)
