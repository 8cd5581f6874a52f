import torch
import torchvision.transforms.v2.functional as transforms

from lightning_recall.data.augment import random_affine


def test_zero_amounts_change_nothing():
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(random_affine(images, 0, 0, 0, 0), images)


def test_images_have_different_transforms_and_keep_their_dtype_and_brightness():
    images = torch.zeros(5, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = 200
    moved = random_affine(images)
    assert moved.dtype == torch.uint8
    assert all(not torch.equal(moved[i], moved[j]) for i in range(5) for j in range(i))
    brightness = moved.float().mean((1, 2, 3)) / images.float().mean((1, 2, 3))
    assert ((brightness > 0.8) & (brightness < 1.25)).all()  # at most 8 % larger or smaller along each axis


def test_rotation_equals_torchvision(monkeypatch):
    image = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 36, 36), 5, 1)
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.ones(shape, device=device))  # the largest amounts
    rotated = random_affine(image, degrees=20, translate=0, scale=0, shear=0)
    either = [transforms.rotate(image, angle, transforms.InterpolationMode.BILINEAR) for angle in (20.0, -20.0)]
    assert min((rotated - other)[..., 8:24, 8:24].abs().max() for other in either) < 0.02
