"""Interfaces of an epoch and of the plan that draws epochs. Each implementation is in its own file.

A pack is `samples_per_class` images of one class. The sampler splits each class into packs; an epoch assigns packs to
batches, `packs_per_batch` to each.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

EpochSeed = tuple[int, int]
"""(seed of the sampler, epoch number)"""


class Epoch(Protocol):
    """The batches of one epoch."""

    @property
    def length(self) -> int:
        """Number of batches."""

    def batch(self, batch_index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The class of each pack in a batch, and the index of the pack within its class, both (packs_per_batch,)."""


class EpochPlan(Protocol):
    """Computes the length of epochs and draws them."""

    def length(self, seed: EpochSeed) -> int:
        """Number of batches that the sampler yields; a drawn epoch may have more."""

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> Epoch:
        """Draws an epoch.

        Args:
            seed: seed and epoch; some plans seed their own generator with it instead of using `rng`.
            rng: the generator that shuffled the images of this epoch.
        """
