"""One small network of each family for the export tests, whose embeddings differ between images."""

import torch

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
    "convnext": ("convnext_atto", 32, {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16), "ls_init_value": 1.0}, None),
    "dinov2": (
        "vit_small_patch14_dinov2",
        56,
        {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 2, "init_values": 1.0},
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
    with torch.no_grad():
        for parameter in embedder.backbone.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=2 / parameter[0].numel() ** 0.5)
    return embedder.eval(), size
