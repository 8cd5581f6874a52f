"""Counts each image of an evaluation once, over all processes."""

from typing import Any

from torch.utils.data import DistributedSampler


class OwnImages:
    """Leaves out the images that torch's DistributedSampler repeats so that all processes get equally many.

    Args:
        loader: a dataloader, as the Trainer has prepared it.
    """

    def __init__(self, loader: Any) -> None:
        self.remaining = num_own_images(loader)

    def num_counted(self, size: int) -> int:
        """How many of the next `size` images count; the others are repeated."""
        counted = size if self.remaining is None else min(size, self.remaining)
        self.remaining = None if self.remaining is None else self.remaining - counted
        return counted


def num_own_images(loader: Any) -> int | None:
    """How many different images a process gets; None if the dataloader does not repeat any.

    A DistributedSampler gives process r of n the positions r, r + n, r + 2n, ... of a list whose end is padded.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]  # a data set with a sampler has a length
