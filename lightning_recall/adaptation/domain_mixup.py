"""Domain mixup: source and target are mixed, and the mixing ratio is the soft domain label (arXiv 1912.01805)."""

from typing import Literal

import torch
from torch import Tensor

MixupLevel = Literal["pixel", "feature"]
LEVELS: tuple[MixupLevel, ...] = ("pixel", "feature")


class DomainMixup:
    """Draws mixing ratios, and mixes images or features of both domains.

    A ratio lambda is drawn once for each batch from Beta(alpha, alpha) and rounded to two decimals. Ratios nearer to
    one half than `clip` are moved to 0.5 - clip or 0.5 + clip, so that the triplet loss has a margin |2 lambda - 1| of
    at least 2 * clip. These are the rules of the released code.

    mix(s, t) = lambda s + (1 - lambda) t, and lambda is the soft label of the domain: 1 is source, 0 is target.

    Args:
        alpha: both parameters of the Beta distribution, above 0.
        clip: from 0 to below 0.5; 0 keeps all ratios.
        levels: what is mixed: "pixel" for images, "feature" for features, or both.

    Raises:
        ValueError: for values out of range.

    >>> mixup = DomainMixup()
    >>> mixup.mix(torch.ones(2), torch.zeros(2), ratio=0.75)
    tensor([0.7500, 0.7500])
    """

    def __init__(self, alpha: float = 2.0, clip: float = 0.1, levels: tuple[MixupLevel, ...] = LEVELS) -> None:
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be above 0 and finite, got {alpha}.")
        if not 0 <= clip < 0.5:
            raise ValueError(f"clip must be at least 0 and below 0.5, got {clip}.")
        if not levels or set(levels) - set(LEVELS):
            raise ValueError(f'levels must hold "pixel", "feature" or both, got {levels}.')
        self.alpha, self.clip, self.levels = alpha, clip, tuple(levels)

    def draw(self, generator: torch.Generator | None = None) -> float:
        """Draws a ratio from 0 to 1, outside (0.5 - clip, 0.5 + clip)."""
        gammas = torch._standard_gamma(torch.full((2,), self.alpha, dtype=torch.float64), generator)
        return self.clipped(round((gammas[0] / gammas.sum()).item(), 2))

    def clipped(self, ratio: float) -> float:
        """Moves a ratio out of the interval around one half."""
        if abs(ratio - 0.5) >= self.clip:
            return ratio
        return 0.5 + self.clip if ratio >= 0.5 else 0.5 - self.clip

    def mix(self, source: Tensor, target: Tensor, ratio: float) -> Tensor:
        """ratio * source + (1 - ratio) * target; the source itself for ratio 1.

        Raises:
            ValueError: for different shapes, or a ratio outside [0, 1].
        """
        if source.shape != target.shape:
            raise ValueError(
                f"Domain mixup needs equal shapes, got {tuple(source.shape)} and {tuple(target.shape)}: use equal image "
                "sizes and equal batch sizes for both domains."
            )
        if not 0 <= ratio <= 1:
            raise ValueError(f"The mixing ratio must be between 0 and 1, got {ratio}.")
        return ratio * source + (1 - ratio) * target
