"""Overhead of `chunked_forward` for several networks, against the same passes written by hand.

A step of several chunks takes longer than one pass over the whole batch even by hand: small passes are less efficient,
and the gradients of the parameters are added once for each chunk. The overhead of the library is what lies on top. The
bound of a step that recomputes is the loop after a forward pass of all chunks but the last without gradients.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_recall.benchmarks.measure import interleaved_times, machine
from lightning_recall.losses import RecallAtKLoss
from lightning_recall.memory_allocation import keep_freed_memory
from lightning_recall.models import ImageEmbedder
from lightning_recall.recompute import chunked_forward

MAX_TOKENS, VOCABULARY = 64, 1000


class TextEncoder(nn.Module):
    """A small transformer: token ids (B, T) -> mean of the outputs, (B, 128)."""

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, dim)
        layer = nn.TransformerEncoderLayer(dim, nhead=4, dim_feedforward=4 * dim, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds token ids (B, T)."""
        return nn.functional.normalize(self.layers(self.tokens(tokens)).mean(1), dim=1)


def image_network(backbone: str, image_size: int, train_batch_norm: bool = False, **options: Any) -> nn.Module:
    """A timm network with random weights."""
    if backbone.startswith("vit"):
        options["backbone_kwargs"] = {"img_size": image_size}
    freeze = not train_batch_norm
    return ImageEmbedder(
        backbone, embedding_dim=128, pretrained=False, norm="batch", freeze_batch_norm=freeze, **options
    )


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "convnet, BatchNorm in eval mode": partial(image_network, "resnet18"),
    "convnet, BatchNorm in train mode": partial(image_network, "resnet18", train_batch_norm=True),
    "convnet, contiguous": partial(image_network, "resnet18", channels_last=False),
    "ViT": partial(image_network, "vit_tiny_patch16_224"),
    "text encoder with dropout": lambda _: TextEncoder(),
}


def main(args: list[str] | None = None) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.recompute_networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="rows of the table")
    parser.add_argument("--image-size", type=int, default=64, help="pixels; a multiple of 16")
    parser.add_argument("--batch-size", type=int, default=256, help="images, or texts of 64 tokens")
    parser.add_argument("--chunk-size", type=int, default=32, help="images in one pass of the network")
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds; the median is reported")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    console = Console()
    console.print(f"{machine(device)}; batches of {options.batch_size} in chunks of {options.chunk_size}, fp32")
    columns = "plain loop, s", "kept / loop", "recomputed / loop", "bound / loop", "whole batch / loop"
    table = Table("network", *columns, title="Seconds of a step, and ratios to a plain loop over the same chunks")
    for name in options.networks:
        torch.manual_seed(0)
        model = NETWORKS[name](options.image_size).to(device).train()
        batch = example_inputs(name, options.batch_size, options.image_size, device)
        steps = training_steps(model, batch, options.chunk_size)
        loop, *others = interleaved_times(steps, device, options.repeats)
        table.add_row(name, f"{loop:.2f}", *(f"{time / loop:.2f}" for time in others))
    console.print(table)


def example_inputs(name: str, count: int, image_size: int, device: torch.device) -> Tensor:
    """Token ids (count, 64), or images (count, 3, size, size)."""
    if name.startswith("text"):
        return torch.randint(VOCABULARY, (count, MAX_TOKENS), device=device)
    return torch.randint(256, (count, 3, image_size, image_size), dtype=torch.uint8, device=device)


def training_steps(model: nn.Module, batch: Tensor, chunk_size: int) -> list[Callable[[], None]]:
    """Steps by a plain loop over chunks, with all kept, with chunks recomputed, the bound, and with the whole batch."""
    chunks = torch.split(batch, chunk_size)

    def embed_twice() -> Tensor:
        with torch.no_grad():
            for chunk in chunks[:-1]:
                model(chunk)
        return torch.cat([model(chunk) for chunk in chunks])

    embeds: list[Callable[[], Tensor]] = [
        lambda: torch.cat([model(chunk) for chunk in chunks]),
        lambda: chunked_forward(model, batch, chunk_size, keep_chunks=len(chunks)),
        lambda: chunked_forward(model, batch, chunk_size),
        embed_twice,
        lambda: model(batch),
    ]
    return [partial(step, model, embed) for embed in embeds]


def step(model: nn.Module, embed: Callable[[], Tensor]) -> None:
    """Embeds a batch and computes the gradient of the loss."""
    embeddings = embed()
    RecallAtKLoss()(embeddings, torch.arange(len(embeddings), device=embeddings.device) // 4).backward()
    model.zero_grad()


if __name__ == "__main__":
    keep_freed_memory()
    main()
