"""Training batches of images with masks, and how items form a batch."""

from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from lightning_recall.data.batches import BatchLoader, ShuffledBatchSampler


class SegmentationLoader(BatchLoader):
    """Training batches (images (b, 3, H, W) uint8, masks (b, H, W) int64), b images on each process.

    Order and augmentation depend only on the sampler's seed and epoch, and a run resumes in the middle of an epoch: see
    `ChunkLoader`.
    """

    def __init__(self, dataset: Any, sampler: ShuffledBatchSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler, collate_fn=collate, **kwargs)


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stacks images (B, 3, H, W) and masks (B, H, W).

    Raises:
        ValueError: if the images have different sizes.
    """
    sizes = sorted({tuple(image.shape[-2:]) for image, _ in items})
    if len(sizes) > 1:
        raise ValueError(sizes_message(sizes))
    images, masks = default_collate(items)
    return images, masks


def sizes_message(sizes: Any, training: bool | None = None) -> str:
    """Says that images of different sizes cannot form a batch, and what to do; sizes are (height, width)."""
    first, last = (f"{size[1]} x {size[0]}" for size in (min(sizes), max(sizes)))
    advice = {
        True: "set transforms.crop_size or transforms.resize, or batch_size to 1",
        False: "set eval_batch_size to 1, or transforms.resize",
        None: "in training set transforms.crop_size, in evaluation transforms.resize or eval_batch_size=1",
    }[training]
    return f"Images of different sizes, such as {first} and {last} pixels, cannot form a batch: {advice}."
