import numpy as np
import pytest
import torch

from lightning_recall.search.embedding_blocks import EmbeddingBlocks


def test_pieces_of_any_kind_are_one_matrix(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16)
    np.save(tmp_path / "part.npy", rows[5:20])
    on_disk = np.load(tmp_path / "part.npy", mmap_mode="r")
    blocks = EmbeddingBlocks([torch.from_numpy(rows[:5]), on_disk, rows[20:20], rows[20:].astype(np.float64)])
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    assert len(blocks) == 30
    np.testing.assert_allclose(blocks.block(3, 23), unit[3:23], atol=1e-6)
    assert blocks.block(3, 23).dtype == torch.float32
    numbers = torch.tensor([29, 0, 6, 6, 20, 4])
    np.testing.assert_allclose(blocks.rows(numbers), unit[numbers], atol=1e-15)


def test_dot_products_keep_their_proportions():
    rows = torch.randn(9, 3, dtype=torch.float64) * 1e30  # beyond what fp32 could square
    blocks = EmbeddingBlocks(rows, normalize=False)
    lengths = blocks.rows(torch.arange(9)).norm(dim=1)
    assert lengths.max() == pytest.approx(1)
    torch.testing.assert_close(lengths * rows.norm(dim=1).max(), rows.norm(dim=1))
    assert torch.isfinite(blocks.block(0, 9)).all()


def test_large_half_precision_does_not_overflow():
    rows = torch.full((2, 512), 60_000.0, dtype=torch.float16)
    torch.testing.assert_close(EmbeddingBlocks(rows).block(0, 2), torch.full((2, 512), 512**-0.5))
    assert torch.equal(EmbeddingBlocks(torch.zeros(2, 4)).block(0, 2), torch.zeros(2, 4))


def test_pieces_that_do_not_fit_are_refused():
    for pieces in ([torch.ones(2, 3), torch.ones(2, 4)], [torch.ones(3)]):
        with pytest.raises(ValueError, match=r"matrices \(N, D\) of one width"):
            EmbeddingBlocks(pieces)
