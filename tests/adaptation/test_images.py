from types import SimpleNamespace

import pytest
import torch

from lightning_recall.adaptation.images import check_images, check_range, normalization, normalized, unit_range


def test_bytes_are_divided_by_255():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(unit_range(images, torch.float32), torch.tensor([0, 0.2, 1]))
    assert unit_range(images, torch.float64).dtype == torch.float64
    floats = torch.tensor([0.3])
    assert unit_range(floats, torch.float32) is floats
    assert unit_range(floats, torch.float64).dtype == torch.float64  # images made by numpy differ from the networks


@pytest.mark.parametrize(
    ("mean", "std", "encoder", "expected"),
    [
        (None, None, SimpleNamespace(), ((0, 0, 0), (1, 1, 1))),
        (None, None, SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(2, 2, 2)), ((0.5, 0.4, 0.3), (2, 2, 2))),
        ((0.5,), (2.0,), SimpleNamespace(mean=(1, 1, 1), std=(1, 1, 1)), ((0.5,), (2,))),
        ((0.5,), None, SimpleNamespace(), ((0.5,), (1,))),
        (None, (0.5,), SimpleNamespace(), ((0,), (0.5,))),
        (None, None, SimpleNamespace(mean=None, std=None), ((0, 0, 0), (1, 1, 1))),
    ],
)
def test_mean_and_std(mean, std, encoder, expected):
    assert normalization(mean, std, encoder) == expected


def test_bad_mean_and_std():
    with pytest.raises(ValueError, match="std must hold finite numbers above 0"):
        normalization(None, (1, 0, 1), SimpleNamespace())
    with pytest.raises(ValueError, match="one number for each channel"):
        normalization((0.5,), None, SimpleNamespace(std=(1, 1, 1)))


def test_normalised_images():
    images = torch.rand(2, 3, 4, 4)
    result = normalized(images, (0.5, 0.0, 0.0), (2.0, 1.0, 1.0))
    torch.testing.assert_close(result[:, 0], (images[:, 0] - 0.5) / 2)
    torch.testing.assert_close(result[:, 1:], images[:, 1:])
    with pytest.raises(ValueError, match="Images have 1 channels, but mean and std hold 3 numbers"):
        normalized(images[:, :1], (0.0,) * 3, (1.0,) * 3)


def test_the_range_of_images():
    check_range(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    check_range(torch.tensor([-0.1, 1.1]))  # bicubic interpolation
    for images in (torch.tensor([0.0, 255.0]), torch.tensor([-2.1, 0.5]), torch.tensor([torch.nan])):
        with pytest.raises(ValueError, match=r"between 0 and 1, got values from .*: leave out the normalisation"):
            check_range(images)
    with pytest.raises(ValueError, match=r"uint8, or floating point between 0 and 1, got torch\.int64"):
        check_range(torch.tensor([3]))


def test_images_are_batches():
    check_images(torch.zeros(1, 3, 2, 2), "source")
    with pytest.raises(ValueError, match=r"The source images must be a tensor \(B, 3, H, W\), got a list of 1"):
        check_images([1], "source")
    with pytest.raises(ValueError, match="A batch has no target images"):
        check_images(torch.zeros(0, 3, 2, 2), "target")
