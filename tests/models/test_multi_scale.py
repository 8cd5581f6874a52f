import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recall import RetrievalModule
from lightning_recall.losses import RecallAtKLoss
from lightning_recall.models import ImageEmbedder, MultiScale
from lightning_recall.models.multi_scale import rescale


class Corners(nn.Module):
    """Embeds the size of an image and its corners."""

    def forward(self, images):
        height, width = images.shape[-2:]
        corners = images[:, 0, [0, 0, -1], [0, -1, 0]].float()
        return torch.cat([torch.full((len(images), 1), float(height * width)) / 100, corners], 1)


class AnySize(nn.Sequential):
    num_features = 8

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_is_the_sum_over_scales_and_flips():
    images = torch.rand(3, 1, 8, 6)
    embedder = Corners()
    found = MultiScale((1, 0.5, 2), flip=True)(embedder, images)
    resized = [rescale(images, scale) for scale in (1, 0.5, 2)]
    assert [tuple(image.shape[-2:]) for image in resized] == [(8, 6), (4, 3), (16, 12)]
    total = sum(F.normalize(embedder(part), dim=1) for image in resized for part in (image, image.flip(-1)))
    torch.testing.assert_close(found, F.normalize(total, dim=1))


def test_one_scale_without_flip_is_the_embedder():
    images = torch.randint(0, 256, (2, 1, 32, 32)).to(torch.uint8)
    embedder = ImageEmbedder(AnySize(), embedding_dim=8).eval()
    torch.testing.assert_close(MultiScale((1,), flip=False)(embedder, images), embedder(images))
    assert rescale(images, 0.7).dtype == torch.uint8


def test_the_flipped_image_has_the_same_embedding():
    images = torch.randint(0, 256, (2, 1, 32, 32)).to(torch.uint8)
    embedder = ImageEmbedder(AnySize(), embedding_dim=8).eval()
    augmentation = MultiScale((1, 0.8))
    torch.testing.assert_close(augmentation(embedder, images), augmentation(embedder, images.flip(-1)))


def test_the_module_augments_in_test_and_predict_only():
    images, labels = torch.randint(0, 256, (4, 1, 32, 32)).to(torch.uint8), torch.arange(4)
    embedder = ImageEmbedder(AnySize(), embedding_dim=8)
    module = RetrievalModule(embedder, RecallAtKLoss(), test_time_augmentation=MultiScale((1, 0.8))).eval()
    expected = MultiScale((1, 0.8))(embedder, images)
    torch.testing.assert_close(module.test_step((images, labels), 0)["embeddings"], expected)
    torch.testing.assert_close(module.predict_step((images, labels), 0), expected)
    torch.testing.assert_close(module.validation_step((images, labels), 0)["embeddings"], embedder(images))


@pytest.mark.parametrize("scales", [(), (0,), (1, -1)])
def test_wrong_scales_are_rejected(scales):
    with pytest.raises(ValueError, match="scales must be"):
        MultiScale(scales)


def test_scales_may_be_changed_later():
    images, augmentation = torch.rand(2, 1, 8, 6), MultiScale((1,), flip=False)
    augmentation.scales = (2,)
    torch.testing.assert_close(augmentation(Corners(), images), MultiScale((2,), flip=False)(Corners(), images))
    augmentation.scales = (0,)
    with pytest.raises(ValueError, match="scales must be"):
        augmentation(Corners(), images)
