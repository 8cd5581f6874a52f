"""What the sampler needs of an epoch, and of the plan that draws it. Each kind of epoch has a file of its own.

A pack is `samples_per_class` images of one class. The sampler splits each class into packs; an epoch says which packs
form each batch.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

EpochSeed = tuple[int, int]
"""the sampler's seed and the number of the epoch"""


class Epoch(Protocol):
    """The batches of one epoch."""

    @property
    def length(self) -> int:
        """Number of batches."""

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The class of each pack in a batch, and the index of the pack within its class, both (num_packs,)."""


class EpochPlan(Protocol):
    """Says how long epochs are, and draws them."""

    def length(self, seed: EpochSeed) -> int:
        """Number of batches that the sampler yields; a drawn epoch may have more."""

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> Epoch:
        """Draws an epoch.

        Args:
            seed: of a plan's own generator, for plans whose epochs do not depend on the order of the images.
            rng: the generator that has shuffled the images of this epoch.
        """
