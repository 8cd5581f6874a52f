from types import SimpleNamespace

import timm
import torch
from torch import nn

from lightning_recall.adaptation.batches import DomainBatch
from lightning_recall.adaptation.models.digits import DigitEncoder, GaussianEncoder
from lightning_recall.adaptation.training_summary import architecture, training_summary


def test_rows():
    class DANNModule:
        trainer, num_classes, encoder = SimpleNamespace(world_size=2), 1200, DigitEncoder(2)

    images = torch.zeros(600, 3, 8, 10)
    assert training_summary(DANNModule(), DomainBatch(images, images, images[:4])) == {
        "method": "DANN",
        "architecture": "DigitEncoder",
        "classes": "1,200",
        "batch": "1,200 source and 8 target images",
        "image size": "8 x 10",
    }


def test_the_backbone_is_named():
    assert architecture(GaussianEncoder(DigitEncoder(2))) == "GaussianEncoder, DigitEncoder"
    encoder = nn.Identity()
    encoder.backbone = timm.create_model("resnet10t", pretrained=False)
    assert architecture(encoder) == "Identity, resnet10t"
