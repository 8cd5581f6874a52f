import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv

from lightning_recall.adaptation.data import PhotoTransforms

IMAGE = torch.arange(3 * 20 * 30, dtype=torch.float32).reshape(3, 20, 30).div(8).byte()


def test_evaluation_squeezes_to_a_square_and_crops_the_centre():
    image = PhotoTransforms(size=8, resize=12).transform(training=False)(IMAGE)
    expected = tv.resize(IMAGE, [12, 12], antialias=True)[:, 2:10, 2:10]
    assert torch.equal(image, expected)
    assert PhotoTransforms().evaluation_sizes == (224, 256)


def test_training_crops_at_random_and_flips():
    whole = tv.resize(IMAGE, [12, 12], antialias=True)
    parts = whole.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)
    transform = PhotoTransforms(size=8, resize=12).transform(training=True)
    seen, flipped = set(), 0
    for _ in range(60):
        image = transform(IMAGE)
        for candidates, flip in ((parts, 0), (parts.flip(3), 1)):
            found = (candidates == image).flatten(1).all(1).nonzero()
            if len(found):
                seen.add(int(found[0]))
                flipped += flip
                break
        else:
            pytest.fail("no crop of the resized image")
    assert len(seen) > 12
    assert 15 < flipped < 45
    transform = PhotoTransforms(size=8, resize=12, flip=False).transform(training=True)
    assert all((parts == transform(IMAGE)).flatten(1).all(1).any() for _ in range(20))


def test_resized_crops_and_own_transforms():
    transform = PhotoTransforms(size=8, resize=12, crop="resized").transform(training=True)
    assert transform(IMAGE).shape == (3, 8, 8)
    assert "scale=(0.08, 1.0)" in repr(transform)
    own = nn.Identity()
    transforms = PhotoTransforms(train_transform=own, eval_transform=own)
    assert transforms.transform(training=True) is transforms.transform(training=False) is own


def test_errors():
    with pytest.raises(ValueError, match='crop must be "random" or "resized", got \'center\''):
        PhotoTransforms(crop="center")
    with pytest.raises(ValueError, match="size=224, resize=100"):
        PhotoTransforms(resize=100)
    with pytest.raises(ValueError, match="leave longest_side and mode at their defaults, got None and 'L'"):
        PhotoTransforms(mode="L")
