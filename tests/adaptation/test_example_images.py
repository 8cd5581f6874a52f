import torch

from lightning_recall.adaptation.example_images import domain_images, to_uint8

SOURCE = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_mixes_are_rounded_weighted_means():
    images = domain_images(SOURCE.double() / 255, TARGET.double() / 255, [0.3, 1.0])
    assert [*images] == ["source", "target", "mixed 0.3", "mixed 1"]
    expected = 0.3 * SOURCE.numpy() + 0.7 * TARGET.numpy()
    assert abs(images["mixed 0.3"].numpy() - expected).max() <= 0.5 + 1e-9
    assert torch.equal(images["mixed 1"], SOURCE)


def test_values_out_of_range_are_clipped():
    assert to_uint8(torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5])).tolist() == [0, 0, 128, 255, 255]
