import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation

from lightning_recall.segmentation.models import logits_of
from lightning_recall.segmentation.models.outputs import output_of


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_networks_of_torchvision(name):
    torch.manual_seed(0)
    network = segmentation.__dict__[name](weights=None, weights_backbone=None, num_classes=4).eval()
    output = network(torch.randn(1, 3, 50, 70))
    assert torch.equal(logits_of(output, (50, 70)), output["out"])


def test_encoders_of_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch")  # a test tool
    network = smp.Unet(encoder_name="tu-resnet18", encoder_weights=None, classes=4).eval()
    output = network(torch.randn(1, 3, 64, 96))
    assert logits_of(output, (64, 96)) is output
    assert output.shape == (1, 4, 64, 96)


def test_logits_are_enlarged_between_pixel_centres():
    logits = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 2)
    assert logits_of(logits, (1, 4)).flatten().tolist() == [0, 1, 3, 4]  # align_corners=True gives 0, 4/3, 8/3, 4
    assert logits_of(logits, (3, 2)).shape == (1, 1, 3, 2)


def test_gradients_reach_the_network():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    logits_of({"out": logits}, (8, 10)).sum().backward()
    assert torch.allclose(logits.grad, torch.full_like(logits, 4))  # each logit is shared by 2 x 2 pixels


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"aux": torch.zeros(1, 2, 4, 4)}, r'without the key "out", which must hold the logits: \[\'aux\'\]\.$'),
        ([torch.zeros(1, 2, 4, 4)], r"got list: wrap the network"),
        ({"out": None}, r"got NoneType: wrap the network"),
        (torch.zeros(1, 2, 4), r"got torch.float32 \(1, 2, 4\)\.$"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.long), r"got torch.int64 \(1, 2, 4, 4\)\.$"),
        (torch.zeros(1, 2, 9, 4), r"of 9 x 4 pixels for images of 8 x 8: they must not be empty or larger"),
        (torch.zeros(1, 2, 8, 0), r"of 8 x 0 pixels for images of 8 x 8: they must not be empty or larger"),
    ],
)
def test_other_outputs_raise(output, message):
    with pytest.raises(ValueError, match=message):
        logits_of(output, (8, 8))


def test_interpolation_is_that_of_torchvision():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 7)
    expected = F.interpolate(logits, size=(20, 21), mode="bilinear", align_corners=False)  # _SimpleSegmentationModel
    assert torch.equal(logits_of(logits, (20, 21)), expected)


class Divisible(nn.Module):
    def forward(self, images):
        if images.shape[-1] % 32:
            raise RuntimeError("Wrong input shape. Expected image height and width divisible by 32.\nPad.")
        raise RuntimeError("another error")


def test_a_size_that_the_network_rejects():
    with pytest.raises(ValueError, match=r"^Divisible does not accept images of 64 x 70 .* by 32. Resize the images"):
        output_of(Divisible(), torch.zeros(1, 3, 64, 70))
    with pytest.raises(RuntimeError, match="another error"):
        output_of(Divisible(), torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"Images must be of shape \(B, 3, H, W\), got \(3, 64, 64\)"):
        output_of(Divisible(), torch.zeros(3, 64, 64))
