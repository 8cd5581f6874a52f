import numpy as np
import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from lightning_recall.segmentation.data import SegmentationTransforms
from lightning_recall.segmentation.data.transforms import PADDING_COLOR, RandomScaleCrop, resize_both


def pair(height=60, width=80):
    """An image whose first channel is its mask times 50, in blocks of 10 pixels, so that a misplaced mask shows."""
    blocks = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (height // 10, width // 10)))
    mask = blocks.repeat_interleave(10, 0).repeat_interleave(10, 1).to(torch.uint8)
    return tv_tensors.Image((mask * 50).expand(3, -1, -1).clone()), tv_tensors.Mask(mask)


def disagreement(image, mask):
    """Fraction of the pixels with a class at which the image does not show this class."""
    valid = mask != 255
    return float(((image[0].float() / 50).round()[valid] != mask[valid]).float().mean())


@pytest.mark.parametrize("crop_size", [32, (40, 24), (70, 90), None])
@pytest.mark.parametrize("resize", [None, (30, 120)])
def test_image_and_mask_stay_together(crop_size, resize):
    transform = SegmentationTransforms(crop_size=crop_size, resize=resize).transform(training=True)
    for seed in range(20):
        torch.manual_seed(seed)
        image, mask = transform(*pair())
        size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size or resize or (60, 80)
        assert image.shape == (3, *size)
        assert mask.shape == size
        assert image.dtype == mask.dtype == torch.uint8
        assert disagreement(image, mask) < 0.25  # blurred edges only: random masks disagree at 0.8


def test_padding_is_ignored_and_of_one_color():
    torch.manual_seed(0)
    transform = RandomScaleCrop((64, 64), (0.5, 0.5))
    image, mask = transform(*pair())
    assert (mask[:30, :40] != 255).all()
    assert (mask[30:] == 255).all()
    assert (mask[:, 40:] == 255).all()
    assert image[:, 40:, 50:].flatten(1).unique(dim=1).flatten().tolist() == list(PADDING_COLOR)


def test_scale_one_crops_without_resampling():
    image, mask = pair()
    cropped, ids = RandomScaleCrop((20, 30), (1.0, 1.0))(image, mask)
    windows = [
        (top, left)
        for top in range(41)
        for left in range(51)
        if torch.equal(mask[top : top + 20, left : left + 30], ids.as_subclass(torch.Tensor))
        and torch.equal(image[:, top : top + 20, left : left + 30], cropped.as_subclass(torch.Tensor))
    ]
    assert windows


def test_scales_are_uniform_in_the_logarithm_and_cover_their_range():
    sizes = []
    for seed in range(300):
        torch.manual_seed(seed)
        _, mask = RandomScaleCrop((80, 80), (0.5, 2.0))(*pair(40, 40))
        sizes.append(float((mask != 255).sum()) ** 0.5 / 40)
    logs = np.log2(sizes)
    assert -1.05 < logs.min() < -0.95
    assert 0.95 < logs.max() < 1.05
    assert abs(logs.mean()) < 0.1


def test_crops_come_from_everywhere():
    seen = torch.zeros(60, 80, dtype=torch.bool)
    positions = torch.arange(4800).reshape(60, 80)
    for seed in range(200):
        torch.manual_seed(seed)
        image = torch.stack([positions % 256, positions // 256, positions * 0]).to(torch.uint8)
        crop, _ = RandomScaleCrop((20, 20), (1.0, 1.0))(tv_tensors.Image(image), tv_tensors.Mask(image[0]))
        codes = crop[0].long() + 256 * crop[1].long()
        seen.view(-1)[codes.flatten()] = True
    assert seen.any(0).all()
    assert seen.any(1).all()
    assert seen.float().mean() > 0.9  # corners are rare


def test_flip_turns_both():
    transforms = SegmentationTransforms(scale=(1.0, 1.0)).transform(training=True)
    image, mask = pair()
    results = []
    for seed in range(20):
        torch.manual_seed(seed)
        new_image, new_mask = transforms(image, mask)
        flipped = torch.equal(new_mask.flip(-1), mask)
        assert flipped or torch.equal(new_mask, mask)
        assert torch.equal(new_image, image.flip(-1) if flipped else image)
        results.append(flipped)
    assert 4 < sum(results) < 16
    still = SegmentationTransforms(scale=(1.0, 1.0), flip=False).transform(training=True)
    assert all(torch.equal(still(image, mask)[1], mask) for _ in range(10))


def test_color_jitter_changes_only_the_image():
    torch.manual_seed(0)
    image, mask = pair()
    jittered, same = SegmentationTransforms(scale=(1.0, 1.0), flip=False, color_jitter=0.5).transform(True)(image, mask)
    assert torch.equal(same, mask)
    assert (jittered.float() - image.float()).abs().mean() > 3
    assert tuple(SegmentationTransforms(color_jitter=0.5).transform(True).transforms[-1].hue) == (-0.05, 0.05)


def test_masks_are_resized_at_the_centres_of_pixels():
    """Halving 4 x 4 blocks of 2 pixels is exact; torchvision's `resize` of a mask shifts it when it enlarges by 1.5."""
    mask = torch.arange(4).repeat_interleave(4)[None].repeat(4, 1).to(torch.uint8)
    _, small = resize_both(torch.zeros(3, 4, 16, dtype=torch.uint8), mask, (4, 4))
    assert small[0].tolist() == [0, 1, 2, 3]
    _, large = resize_both(torch.zeros(3, 4, 16, dtype=torch.uint8), mask, (4, 24))
    assert torch.equal(large.flip(-1), 3 - large)  # symmetric, as the mask is


def test_evaluation_keeps_or_resizes_the_whole_image():
    image, mask = pair()
    same, ids = SegmentationTransforms(crop_size=16, color_jitter=1).transform(training=False)(image, mask)
    assert torch.equal(same, image)
    assert torch.equal(ids, mask)
    resized, ids = SegmentationTransforms(resize=(30, 40)).transform(training=False)(image, mask)
    assert resized.shape == (3, 30, 40)
    assert torch.equal(ids, mask[::2, ::2])


def test_own_transforms_replace_all():
    class Zero(nn.Module):
        def forward(self, image, mask):
            return image, torch.zeros_like(mask)

    transforms = SegmentationTransforms(
        crop_size=8, train_transform=Zero(), eval_transform=v2.RandomHorizontalFlip(p=1.0)
    )
    image, mask = pair()
    assert not transforms.transform(training=True)(image, mask)[1].any()
    assert torch.equal(transforms.transform(training=False)(image, mask)[1], mask.flip(-1))
    assert not transforms.keeps_train_size
    assert not transforms.keeps_eval_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 0}, "transforms.crop_size must be .* got 0"),
        ({"resize": (5, 0)}, r"transforms.resize must be .* got \(5, 0\)"),
        ({"crop_size": (1, 2, 3)}, r"got \(1, 2, 3\)"),
        ({"scale": (0.0, 1.0)}, "transforms.scale must be"),
        ({"scale": (2.0, 1.0)}, "transforms.scale must be"),
        ({"color_jitter": 1.5}, "color_jitter must be from 0 to 1, got 1.5"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SegmentationTransforms(**settings)
