"""A timm backbone with a light feature pyramid, for pretrained weights."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.format import Format
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from lightning_recall.checks import check_integer, first_line
from lightning_recall.models.backbones import check_arguments, check_name, crashes_channels_last, create
from lightning_recall.segmentation.models.outputs import enlarge
from lightning_recall.segmentation.models.small_unet import conv_norm_relu

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeaturePyramidSegmenter(nn.Module):
    """A timm backbone, a feature pyramid, and a head on the sum of its levels.

    The architecture is the semantic branch of Kirillov, Girshick, He, Dollar, "Panoptic Feature Pyramid Networks",
    CVPR 2019 (arXiv 1901.02446), made lighter (our choice): 64 channels instead of 256, one bilinear enlargement per
    level, and one convolution on the sum of the levels instead of several on each.

    Args:
        num_classes: C, number of classes.
        backbone: name of a timm model.
        pretrained: True loads timm's pretrained weights (downloaded); a path loads them from a .safetensors, .pth or
            .npz file; False initialises randomly.
        channels: channels of the pyramid and of the head.
        backbone_kwargs: arguments of the timm model, such as {"drop_path_rate": 0.1}.

    Attributes:
        mean, std: one value per channel, with which the pretrained backbone expects images in [0, 1] to be normalised.
        backbone: the timm model, images -> a list of maps.

    Shapes: images (B, 3, H, W), normalised, of any height and width that the backbone accepts -> logits
    (B, num_classes, H, W).

    Raises:
        ValueError: for a name that timm does not know, weights or `backbone_kwargs` that do not fit the model, and
            numbers below 1; in `forward`, for an image size that the backbone rejects.

    >>> network = FeaturePyramidSegmenter(num_classes=5, backbone="test_efficientnet").eval()
    >>> network(torch.zeros(2, 3, 50, 70)).shape
    torch.Size([2, 5, 50, 70])
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "tf_efficientnet_lite0",
        pretrained: bool | str = False,
        channels: int = 64,
        backbone_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, 1)
        check_integer("channels", channels, 1)
        self.num_classes = num_classes
        self.backbone = feature_backbone(backbone, pretrained, backbone_kwargs or {})
        config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
        self.mean = tuple(config.mean if config else IMAGENET_MEAN)
        self.std = tuple(config.std if config else IMAGENET_STD)
        self.is_last_channel = getattr(self.backbone, "output_fmt", None) == Format.NHWC  # Swin and some others
        self.levels = pyramid_levels(self.backbone.feature_info.reduction())
        widths = self.backbone.feature_info.channels()
        self.pyramid = FeaturePyramidNetwork([widths[level] for level in self.levels], channels)
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), conv_norm_relu(channels, channels), nn.Conv2d(channels, num_classes, 1)
        )
        self.channels_last = not crashes_channels_last(self.backbone)
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of normalised images (B, 3, H, W)."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            maps = self.backbone(images)
        except AssertionError as error:  # raised by timm's transformers
            height, width = images.shape[-2:]
            raise ValueError(
                f"The backbone does not accept images of {height} x {width} pixels (height x width): "
                f"{first_line(error).rstrip('.')}. Resize the images: transforms.resize of the data module, in "
                "training also transforms.crop_size."
            ) from error
        if self.is_last_channel:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        levels = self.pyramid(OrderedDict((str(level), maps[level]) for level in self.levels)).values()
        first, *deeper = levels  # the first has the most pixels
        total = first
        for level in deeper:
            total = total + enlarge(level, first.shape[-2:])
        return enlarge(self.head(total), (images.shape[-2], images.shape[-1]))


def feature_backbone(name: str, pretrained: bool | str, kwargs: Mapping[str, Any]) -> Any:
    """A timm model that outputs its intermediate maps (B, C, h, w).

    Raises:
        ValueError: for a name that timm does not know, arguments that the model does not accept, and weights that
            cannot be loaded.
    """
    check_name(name)
    check_arguments(name, kwargs)
    return create(name, pretrained, {**kwargs, "features_only": True})


def pyramid_levels(strides: list[int]) -> list[int]:
    """Positions of the maps that enter the pyramid: strides from 4, or all maps if none has such a stride.

    >>> pyramid_levels([2, 4, 8, 16, 32])
    [1, 2, 3, 4]
    """
    return [number for number, stride in enumerate(strides) if stride >= 4] or list(range(len(strides)))
