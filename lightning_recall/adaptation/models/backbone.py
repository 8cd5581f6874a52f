"""A timm backbone as encoder of photographs, with an optional bottleneck."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.checks import check_integer, first_line
from lightning_recall.models.backbones import (
    channels_of,
    check_arguments,
    check_name,
    crashes_channels_last,
    create,
    input_shape,
)


class BackboneEncoder(nn.Module):
    """Pooled features of a timm model, with a bottleneck: images (B, 3, H, W) -> features (B, D).

    The bottleneck (a linear layer, BatchNorm, ReLU) has randomly initialised weights. It is the convention of methods
    for photographs since DANN (256 features), with the layers of tllib's `ImageClassifier`.

    Args:
        backbone: name of a timm model, such as "resnet50.tv_in1k" or "vit_base_patch16_224"; "hf-hub:owner/name"; or
            "local-dir:/folder" with config.json and weights.
        pretrained: True loads timm's pretrained weights (downloaded, or from the local-dir); a path loads them from a
            .safetensors, .pth or .npz file; False initialises randomly.
        bottleneck_dim: D, at least 1; None: no bottleneck, D is that of the backbone's pooled features.
        backbone_kwargs: arguments of the timm model, such as {"drop_path_rate": 0.1} or {"img_size": 96}.

    Attributes:
        feature_dim: D.
        mean, std: one value per channel, with which the pretrained backbone expects images in [0, 1] to be normalised.
        backbone: the timm model, without classifier.

    Raises:
        ValueError: for a name that timm does not know, weights or `backbone_kwargs` that do not fit the model, and a
            `bottleneck_dim` below 1; in `forward`, for an image size that the backbone rejects.

    >>> BackboneEncoder("test_efficientnet").eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 256])
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        bottleneck_dim: int | None = 256,
        backbone_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        kwargs = dict(backbone_kwargs or {})
        check_name(backbone)
        check_arguments(backbone, kwargs)
        if bottleneck_dim is not None:
            check_integer("bottleneck_dim", bottleneck_dim, 1)
        self.backbone = create(backbone, pretrained, kwargs)
        num_features = channels_of(self.backbone, "vectors", input_shape(self.backbone, kwargs))
        self.feature_dim = num_features if bottleneck_dim is None else bottleneck_dim
        self.bottleneck = nn.Identity() if bottleneck_dim is None else bottleneck(num_features, bottleneck_dim)
        self.mean = tuple(self.backbone.pretrained_cfg["mean"])
        self.std = tuple(self.backbone.pretrained_cfg["std"])
        self.channels_last = not crashes_channels_last(self.backbone)
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, 3, H, W)."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            pooled = self.backbone(images)
        except AssertionError as error:  # raised by timm's transformers
            height, width = images.shape[-2:]
            raise ValueError(
                f"The backbone does not accept images of {height} x {width} pixels (height x width): "
                f"{first_line(error).rstrip('.')}. Set the image size of the data module, or img_size in "
                "backbone_kwargs."
            ) from error
        features: Tensor = self.bottleneck(pooled)
        return features


def bottleneck(num_features: int, dim: int) -> nn.Sequential:
    """A linear layer, BatchNorm and ReLU: (B, num_features) -> (B, dim)."""
    return nn.Sequential(nn.Linear(num_features, dim), nn.BatchNorm1d(dim), nn.ReLU())
