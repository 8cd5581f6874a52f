"""Training batches of two domains: each item is a pair of a source image with its label, and a target image."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from lightning_recall.checks import check_integer
from lightning_recall.data.batches import BatchLoader, ShuffledBatchSampler

EpochLength = Literal["shorter", "longer"]
EPOCH_LENGTHS = ("shorter", "longer")


class DomainPairs(Dataset[tuple[Tensor, int, Tensor]]):
    """Items (source image, label, target image) of a pair of indices; labels of the target are dropped unread.

    Args:
        source: items (image, label).
        target: items (image, label), or images.
        transform: changes each training image (3, H, W) of both domains, for example a transform of torchvision's v2;
            it may draw random numbers. None: no transform.
    """

    def __init__(self, source: Any, target: Any, transform: nn.Module | None = None) -> None:
        self.source, self.target = source, target
        self.transform = transform or nn.Identity()

    def __getitem__(self, indices: tuple[int, int]) -> tuple[Tensor, int, Tensor]:
        """The images and the label at (source index, target index)."""
        image, label = self.source[indices[0]]
        other = self.target[indices[1]]
        other = other[0] if isinstance(other, tuple | list) else other
        return self.transform(image), label, self.transform(other)


class PairedBatchSampler(ShuffledBatchSampler):
    """Batches of shuffled pairs (source index, target index); the order depends only on `seed` and the epoch.

    Each domain is shuffled on its own. Images that do not fill the last batch are left out of this epoch.

    If the domain that sets the length of the epoch has fewer images than `batch_size`, an epoch is one batch of as many
    pairs as that domain has images. With "longer", a shorter domain of any size fills the batches: its images repeat,
    also within a batch.

    Args:
        num_source: images in the source.
        num_target: images in the target.
        batch_size: images of each domain in a batch, over all processes; each process yields its slice.
        seed: random seed.
        reshuffle: False repeats the first epoch, for example for an overfitting test.
        epoch_length: "shorter": an epoch ends with the domain that has fewer images, as in the released code of
            DM-ADA. "longer": it ends with the other domain, and the shorter one is repeated in a new order each time.

    Raises:
        ValueError: for an invalid number or `epoch_length`; at iteration, if a batch cannot be split evenly over the
            processes.

    >>> sampler = PairedBatchSampler(5, 9, batch_size=2)
    >>> [len(batch) for batch in sampler], len(PairedBatchSampler(5, 9, batch_size=2, epoch_length="longer"))
    ([2, 2], 4)
    """

    def __init__(
        self,
        num_source: int,
        num_target: int,
        batch_size: int,
        seed: int = 0,
        reshuffle: bool = True,
        epoch_length: EpochLength = "shorter",
    ) -> None:
        check_integer("num_source", num_source, 1)
        check_integer("num_target", num_target, 1)
        check_epoch_length(epoch_length)
        ends_with = min if epoch_length == "shorter" else max
        super().__init__(ends_with(num_source, num_target), batch_size, seed, reshuffle)
        self.num_source, self.num_target, self.epoch_length = num_source, num_target, epoch_length

    def settings(self) -> dict[str, Any]:
        """Settings that determine the batches of an epoch."""
        return {
            "batch_size": int(self.requested),
            "seed": int(self.seed),
            "num_source": int(self.num_source),
            "num_target": int(self.num_target),
            "epoch_length": str(self.epoch_length),
        }

    def __iter__(self) -> Iterator[list[Any]]:
        """This process's slice of each batch of pairs; the next iteration is the next epoch."""
        rng = np.random.default_rng((self.seed, self.epoch if self.reshuffle else 0))
        size, part, length = self.batch_size, self.local_slice, len(self)
        source, target = rng.permutation(self.num_source), rng.permutation(self.num_target)
        source, target = repeated(source, length * size, rng), repeated(target, length * size, rng)
        self.epoch += 1
        for start in range(0, length * size, size):
            batch = slice(start, start + size)
            yield list(zip(source[batch][part].tolist(), target[batch][part].tolist(), strict=True))


def repeated(order: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At least `count` indices: an order, then new permutations of it."""
    parts = [order]
    while sum(map(len, parts)) < count:
        parts.append(rng.permutation(len(order)))
    return np.concatenate(parts)


def check_epoch_length(epoch_length: Any) -> None:
    """Raises ValueError unless it is "shorter" or "longer"."""
    if epoch_length not in EPOCH_LENGTHS:
        raise ValueError(f'epoch_length must be "shorter" or "longer", got {epoch_length!r}.')


class PairedLoader(BatchLoader):
    """Training batches {"source": (images (b, 3, H, W), labels (b,)), "target": images (b, 3, H, W)}.

    Each process loads b images of each domain. Order and augmentation depend only on the sampler's seed and epoch, and
    a run resumes in the middle of an epoch: see `ChunkLoader`.

    Args:
        dataset: the two domains.
        sampler: draws the pairs.
        kwargs: passed to `torch.utils.data.DataLoader`.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> source = TensorDataset(torch.zeros(4, 3, 32, 32), torch.arange(4))
    >>> target = TensorDataset(torch.ones(6, 3, 32, 32))
    >>> loader = PairedLoader(DomainPairs(source, target), PairedBatchSampler(4, 6, batch_size=2))
    >>> [tuple(batch["target"].shape) for batch in loader]
    [(2, 3, 32, 32), (2, 3, 32, 32)]
    """

    def __init__(self, dataset: DomainPairs, sampler: PairedBatchSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler, collate_fn=collate, **kwargs)


def collate(items: list[tuple[Tensor, int, Tensor]]) -> dict[str, Any]:
    """{"source": (images (B, 3, H, W), labels (B,)), "target": images (B, 3, H, W)}.

    Raises:
        ValueError: if the images have different shapes.
    """
    check_shapes([tuple(image.shape) for source, _, target in items for image in (source, target)])
    images, labels, target = default_collate(items)
    return {"source": (images, labels), "target": target}


def check_shapes(shapes: list[tuple[int, ...]]) -> None:
    """Raises ValueError if images have different shapes (channels, height, width)."""
    different = sorted(set(shapes))
    if len(different) > 1:
        raise ValueError(
            f"Images of different shapes (channels, height, width), such as {different[0]} and {different[-1]}, cannot "
            "form a batch of both domains: resize or crop the images of both domains to one size, and convert both to "
            "RGB."
        )
