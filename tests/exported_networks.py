"""One small network of each family for the export tests, whose embeddings differ between images."""

import torch

from lightning_recall.benchmarks.export import spread_weights
from lightning_recall.models import ImageEmbedder, SmallConvNet

NETWORKS = {
    "convnet": ("resnet10t", 64, {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}, None),
    "vit": ("test_vit", 32, {"img_size": 32}, "gem"),
    "swin": (
        "swin_tiny_patch4_window7_224",
        32,
        {"img_size": 32, "window_size": 4, "depths": (1, 2), "embed_dim": 24, "num_heads": (1, 2)},
        "gem",
    ),
    "convnext": ("convnext_atto", 32, {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}, None),
    "dinov2": (
        "vit_small_patch14_dinov2",
        56,
        {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 2},
        "token",
    ),
}
"""family -> backbone, image size, its arguments, pooling"""


def make_embedder(family):
    """The embedder of a family in evaluation mode, and its image size; "small" is the convnet of this package."""
    torch.manual_seed(0)
    if family == "small":
        embedder = ImageEmbedder(SmallConvNet(), 16, norm="batch")
        embedder(torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8))  # running statistics unlike the initial ones
        return embedder.eval(), 32
    name, size, arguments, pooling = NETWORKS[family]
    embedder = ImageEmbedder(name, 16, pretrained=False, pooling=pooling, backbone_kwargs=arguments)
    spread_weights(embedder.backbone)
    return embedder.eval(), size
