import torch

from lightning_recall.adaptation import noise
from lightning_recall.adaptation.noise import local_noise


def seeded():
    return torch.Generator().manual_seed(3)


def test_processes_have_the_rows_of_the_whole_batch(monkeypatch):
    whole = torch.randn(6, 4, generator=seeded())
    assert torch.equal(local_noise(6, 4, seeded()), whole)
    for rank in range(3):
        monkeypatch.setattr(noise, "rank_and_world_size", lambda rank=rank: (rank, 3))
        assert torch.equal(local_noise(2, 4, seeded()), whole[2 * rank : 2 * rank + 2])


def test_the_default_precision_changes_nothing():
    expected = local_noise(5, 4, seeded())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(local_noise(5, 4, seeded()), expected)
    finally:
        torch.set_default_dtype(torch.float32)
