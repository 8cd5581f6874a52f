import pytest
import torch

from lightning_recall.segmentation.batches import check_scalar, checked_batch, has_valid_pixel


def test_masks_become_int64():
    images, masks = checked_batch([torch.zeros(2, 3, 4, 5), torch.ones(2, 4, 5, dtype=torch.uint8)])
    assert images.shape == (2, 3, 4, 5)
    assert masks.dtype == torch.int64


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 4, 5), "must be a pair .* got a tensor"),
        ([torch.zeros(2, 3, 4, 5)] * 3, "must be a pair .* got a list of 3"),
        ({"image": torch.zeros(2, 3, 4, 5)}, "must be a pair .* 'image'"),
        ((torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 6).long()), r"same height and width, got .*\(2, 4, 6\)"),
        ((torch.zeros(2, 3, 4, 5), torch.zeros(3, 4, 5).long()), r"\(3, 4, 5\)"),
        ((torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5).long()), "squeeze"),
        ((torch.zeros(3, 4, 5), torch.zeros(4, 5).long()), r"\(3, 4, 5\) and \(4, 5\)"),
        ((torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5)), "integers, got torch.float32"),
    ],
)
def test_bad_batches(batch, message):
    with pytest.raises(ValueError, match=message):
        checked_batch(batch)


def test_valid_pixels():
    target = torch.full((1, 2, 2), 255)
    assert not has_valid_pixel(target, 3, 255)
    target[0, 0, 0] = 2
    assert has_valid_pixel(target, 3, 255)
    assert not has_valid_pixel(torch.zeros(1, 2, 2).long(), 3, 0)  # a class that is ignored
    with pytest.raises(ValueError, match="classes from 0 to 1, or 255 for ignored pixels, got 2:"):
        has_valid_pixel(target, 2, 255)
    with pytest.raises(ValueError, match="got 255"):
        has_valid_pixel(target, 3, None)
    with pytest.raises(ValueError, match="got -1"):
        has_valid_pixel(target.clamp(max=-1), 3, 255)


@pytest.mark.parametrize("value", [torch.zeros(2, 3), torch.zeros(1), 0.5])
def test_a_loss_that_is_not_one_number(value):
    with pytest.raises(ValueError, match=r"must return one number, but Focal returned .*: set its reduction"):
        check_scalar(value, "Focal")
    check_scalar(torch.zeros(()), "Focal")
