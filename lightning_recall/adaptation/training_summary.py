"""Table rows that RunSummary prints before an adaptation."""

from typing import Any

from torch import nn

from lightning_recall.adaptation.batches import DomainBatch


def training_summary(module: Any, batch: DomainBatch) -> dict[str, str]:
    """Method, networks, classes and images, in words.

    Args:
        module: the module to be trained.
        batch: the first training batch of this process.
    """
    processes, size = module.trainer.world_size, batch.source.shape
    numbers = (f"{processes * len(batch.source):,} source", f"{processes * len(batch.target):,} target images")
    return {
        "method": type(module).__name__.removesuffix("Module"),
        "architecture": architecture(module.encoder),
        "classes": f"{module.num_classes:,}",
        "batch": " and ".join(numbers),
        "image size": f"{size[-2]} x {size[-1]}",
    }


def architecture(encoder: nn.Module) -> str:
    """Class of an encoder and of its backbones, or the name of a timm model: "GaussianEncoder, DigitEncoder"."""
    names, network = [], encoder
    while True:
        configured = getattr(network, "pretrained_cfg", None) or {}  # of a timm model
        names.append(configured.get("architecture") or type(network).__name__)
        inner = getattr(network, "backbone", None)
        if not isinstance(inner, nn.Module):
            return ", ".join(names)
        network = inner
