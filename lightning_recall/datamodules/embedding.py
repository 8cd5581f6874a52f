"""Embeds the images of a data set once; each process embeds its share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.data.chunk_loader import Chunk, SeededItems
from lightning_recall.evaluation_mode import evaluation_mode
from lightning_recall.random_state import preserve_random_state
from lightning_recall.tensors import at_least_float32

Augment = Callable[[Tensor, Tensor], Tensor]
"""images (b, C, H, W), labels (b,) -> augmented images on the same device"""


def features_function(module: Any) -> Callable[[Tensor], Tensor]:
    """The method of a module, or of its embedder, that computes features (b, F) of images (b, C, H, W).

    Raises:
        ValueError: if there is none.
    """
    embedder = getattr(module, "embedder", module)  # RetrievalModule calls its embedder's method
    if callable(getattr(embedder, "features", None)):
        function: Callable[[Tensor], Tensor] = getattr(module, "features", embedder.features)
        return function
    raise ValueError(
        f"{type(module).__name__} has no method `features` that returns the features of the backbone, and neither has "
        "its embedder: use an ImageEmbedder, or train on images."
    )


def share_of_batch(start: int, count: int, batch_size: int, rank: int, world_size: int) -> list[int]:
    """Indices that a process embeds of the global batch from `start`; equally many on every process.

    The last indices repeat if the items cannot be divided equally.
    """
    size = -(-min(batch_size * world_size, count - start) // world_size)
    first = start + rank * size
    return [min(index, count - 1) for index in range(first, first + size)]


@torch.no_grad()
def embed_images(
    data: Any,
    trainer: Any,
    batch_size: int,
    num_workers: int,
    views: int = 1,
    seed: int = 0,
    augment: Augment | None = None,
    name: str = "training",
) -> tuple[Tensor, Tensor]:
    """Features of all images, in the order of the data set, the same on every process.

    Args:
        data: N images; its own transform is applied.
        trainer: the Trainer, with a module on its device.
        batch_size: images in a pass of the backbone, per process.
        num_workers: loader processes.
        views: how often each image is embedded, each time with other random numbers.
        seed: seed of the augmentations.
        augment: augments images on the device; None: not augmented.
        name: what is embedded, for the progress bar.

    Returns:
        features (N, views, F) on the CPU, and whether each image is readable, (N,) bool.
    """
    module, strategy = trainer.lightning_module, trainer.strategy
    compute, device, count = features_function(module), module.device, len(data)
    rank, world_size = trainer.global_rank, trainer.world_size
    starts = range(0, count, batch_size * world_size)
    shares = [share_of_batch(start, count, batch_size, rank, world_size) for start in starts]
    chunks = [Chunk(share, seed, view, 0, share[0]) for view in range(views) for share in shares]
    loader: DataLoader[Any] = DataLoader(
        SeededItems(data),  # type: ignore[arg-type]  # not a Dataset, but DataLoader only calls __getitems__
        batch_sampler=chunks,  # type: ignore[arg-type]  # torch passes chunks to __getitems__ unchanged
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    gathered: list[Tensor] = []
    gathered_labels: list[Tensor] = []
    hidden = rank != 0 or trainer.progress_bar_callback is None
    bar = tqdm(total=views * count, desc=f"Embedding {name} images", unit="image", disable=hidden, leave=False)
    with bar, evaluation_mode(module), preserve_random_state(), trainer.precision_plugin.forward_context():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            images = images if augment is None else augment(images, labels)
            rows = [at_least_float32(compute(images)), labels]
            rows = rows if world_size == 1 else [strategy.all_gather(part).flatten(0, 1) for part in rows]
            left = count - len(gathered) % len(starts) * batch_size * world_size  # without the padding of the last
            gathered.append(rows[0][:left].cpu())
            gathered_labels.append(rows[1][:left].cpu())
            bar.update(len(gathered[-1]))
    features = torch.cat(gathered).reshape(views, count, -1).transpose(0, 1).contiguous()  # (N, views, F)
    return features, torch.cat(gathered_labels)[:count] != IGNORED_LABEL
