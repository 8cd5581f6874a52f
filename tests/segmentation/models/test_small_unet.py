import pytest
import torch
import torch.nn.functional as F

from lightning_recall.segmentation.models import SmallUNet


@pytest.mark.parametrize("size", [(64, 96), (37, 53), (1, 1), (180, 240)])
def test_logits_have_the_size_of_the_images(size):
    assert SmallUNet(5).eval()(torch.randn(2, 3, *size)).shape == (2, 5, *size)


def test_is_small():
    assert 300_000 < sum(parameter.numel() for parameter in SmallUNet(11).parameters()) < 500_000


def test_learns_discs_from_scratch():
    torch.manual_seed(0)
    network = SmallUNet(2, channels=4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    for step in range(41):
        centres = torch.rand(4, 2, 1, 1) * torch.tensor([32, 48]).reshape(1, 2, 1, 1)
        target = ((rows - centres[:, :1]) ** 2 + (columns - centres[:, 1:]) ** 2 < 64).squeeze(1).long()
        images = torch.randn(4, 3, 32, 48) + target[:, None]  # one pixel is not enough to see the disc
        if step == 40:
            break
        optimizer.zero_grad()
        F.cross_entropy(network(images), target).backward()
        optimizer.step()
    predicted = network.eval()(images).argmax(1)
    assert (predicted & target).sum() / (predicted | target).sum() > 0.6


def test_sees_beyond_one_level():
    """A pixel in a corner changes logits tens of pixels away, which a single 3 x 3 convolution cannot."""
    torch.manual_seed(0)
    network = SmallUNet(2).eval()
    image = torch.zeros(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 0, 0] = 10
    difference = (network(image) - network(changed)).abs().sum((0, 1))
    assert difference[16, 16] > 0


@pytest.mark.parametrize("name", ["num_classes", "channels", "in_channels"])
def test_numbers_below_one_raise(name):
    with pytest.raises(ValueError, match=rf"^{name} must be at least 1, got 0\.$"):
        SmallUNet(**{"num_classes": 3, name: 0})


def test_skip_connections_carry_the_image():
    network = SmallUNet(num_classes=3).eval()
    network.encoder[1].register_forward_hook(lambda _, __, maps: torch.zeros_like(maps))
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 16, 16))
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # although the deeper levels see nothing
