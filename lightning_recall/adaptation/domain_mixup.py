"""Domain mixup: source and target are mixed, and the mixing ratio is the soft domain label (arXiv 1912.01805)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_recall.checks import check_above_zero

MixupLevel = Literal["pixel", "feature"]
LEVELS: tuple[MixupLevel, ...] = ("pixel", "feature")


@dataclass(frozen=True)
class DomainMixup:
    """Draws mixing ratios, and mixes images or features of both domains.

    A ratio lambda is drawn once for each batch from Beta(alpha, alpha) and rounded to two decimals. Ratios nearer to
    one half than `clip` are moved to 0.5 - clip or 0.5 + clip, so that the triplet loss of DM-ADA has a margin
    |2 lambda - 1| of at least 2 * clip. With the defaults these are the rules of DM-ADA's released code.

    mix(s, t) = lambda s + (1 - lambda) t, and lambda is the soft label of the domain: 1 is source, 0 is target
    (arXiv 1912.01805).

    Args:
        alpha: both parameters of the Beta distribution, above 0; 2 in the paper.
        clip: from 0 to below 0.5; 0 keeps all ratios. The released code has 0.1 for DM-ADA and 0.3 for DANN.
        levels: what is mixed: "pixel" for images, "feature" for features, or both.

    Raises:
        ValueError: for values out of range.

    >>> mixup = DomainMixup()
    >>> mixup.clipped(0.47), mixup.clipped(0.93)
    (0.4, 0.93)
    >>> mixup.mix(torch.ones(2), torch.zeros(2), ratio=0.75)
    tensor([0.7500, 0.7500])
    """

    alpha: float = 2.0
    clip: float = 0.1
    levels: Sequence[MixupLevel] = LEVELS

    def __post_init__(self) -> None:
        check_above_zero(alpha=self.alpha)
        if not 0 <= self.clip < 0.5:
            raise ValueError(f"clip must be at least 0 and below 0.5, got {self.clip}.")
        levels = [self.levels] if isinstance(self.levels, str) else self.levels
        if not levels or len(set(levels)) < len(levels) or set(levels) - set(LEVELS):
            raise ValueError(f'levels must hold "pixel", "feature" or both, got {self.levels!r}.')
        object.__setattr__(self, "levels", tuple(levels))  # a list in a config, a tuple by default

    def draw(self, generator: torch.Generator | None = None) -> float:
        """Draws a ratio from 0 to 1, outside (0.5 - clip, 0.5 + clip); None: torch's global generator."""
        gammas = torch._standard_gamma(torch.full((2,), self.alpha, dtype=torch.float64), generator)
        return self.clipped(round((gammas[0] / gammas.sum()).item(), 2))

    def clipped(self, ratio: float) -> float:
        """Moves a ratio out of the interval around one half; one half itself becomes 0.5 + clip."""
        if abs(ratio - 0.5) >= self.clip:
            return ratio
        return 0.5 + self.clip if ratio >= 0.5 else 0.5 - self.clip

    def mix(self, source: Tensor, target: Tensor, ratio: float) -> Tensor:
        """See `mix_domains`."""
        return mix_domains(source, target, ratio)


def mix_domains(source: Tensor, target: Tensor, ratio: float) -> Tensor:
    """Mixes images, features or conditions: ratio * source + (1 - ratio) * target; the source itself for ratio 1.

    Raises:
        ValueError: for different shapes, or a ratio outside [0, 1].
    """
    if source.shape != target.shape:
        raise ValueError(
            f"Domain mixup needs equal shapes of source and target, got {tuple(source.shape)} and "
            f"{tuple(target.shape)}: use equal image sizes and equal batch sizes for both domains."
        )
    if not 0 <= ratio <= 1:
        raise ValueError(f"The mixing ratio must be from 0 to 1, got {ratio}.")
    return ratio * source + (1 - ratio) * target
