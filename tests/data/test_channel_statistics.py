import pytest
import torch

from lightning_recall.data.channel_statistics import channel_values, check_normalization

IMAGENET = (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        ([0.5, 0.25, 1], (9.0, 9.0, 9.0), (0.5, 0.25, 1.0)),
        (None, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3)),
        (None, torch.tensor([0.5, 0.25, 0.125]), (0.5, 0.25, 0.125)),
        (None, None, IMAGENET),
        (None, lambda: None, IMAGENET),  # a method of this name
    ],
)
def test_which_numbers_are_used(given, known, expected):
    assert channel_values(given, known, IMAGENET) == expected


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (1.0, 1.0, 1.0), r"one number for each channel, got \(0.5, 0.5\) and \(1.0, 1.0, 1.0\)"),
        ((), (), "one number for each channel"),
        ((float("nan"),), (1.0,), "mean must hold finite numbers"),
        ((0.5,), (0.0,), r"std must hold finite numbers above 0, got \(0.0,\)"),
        ((0.5,), (-1.0,), "std must hold finite numbers above 0"),
        ((0.5,), (float("inf"),), "std must hold finite numbers above 0"),
    ],
)
def test_bad_numbers(mean, std, message):
    with pytest.raises(ValueError, match=message):
        check_normalization(mean, std)
    check_normalization(IMAGENET, (1.0, 0.5, 0.1))
