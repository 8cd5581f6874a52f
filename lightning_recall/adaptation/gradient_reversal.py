"""Gradient reversal (Ganin and Lempitsky, ICML 2015, arXiv 1409.7495)."""

import math
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function


class _Reverse(Function):
    """The identity, whose gradient is multiplied by -alpha."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, alpha: float) -> Tensor:
        """Returns the inputs."""
        ctx.alpha = alpha
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Multiplies the gradient by -alpha."""
        return -ctx.alpha * gradient, None


def reverse_gradient(inputs: Tensor, alpha: float = 1.0) -> Tensor:
    """Returns its input; the gradient is multiplied by -alpha.

    >>> import torch
    >>> x = torch.ones(2, requires_grad=True)
    >>> reverse_gradient(x, alpha=0.5).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """
    reversed_: Tensor = _Reverse.apply(inputs, alpha)
    return reversed_


class GradientReversal(nn.Module):
    """Layer that returns its input and multiplies the gradient by -alpha.

    Placed between an encoder and a domain discriminator, it makes the encoder maximise the loss that the discriminator
    minimises.

    Args:
        alpha: strength of the reversal, at least 0; can be changed during training.

    Raises:
        ValueError: for a negative alpha.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be at least 0 and finite, got {alpha}.")
        self.alpha = alpha

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs."""
        return reverse_gradient(inputs, self.alpha)

    def extra_repr(self) -> str:
        """Shows alpha."""
        return f"alpha={self.alpha:g}"


def reversal_strength(progress: float, gamma: float = 10.0) -> float:
    """Strength alpha = 2 / (1 + exp(-gamma * progress)) - 1, from 0 towards 1 (arXiv 1409.7495, section 4).

    Args:
        progress: fraction of the training that is done, from 0 to 1.
        gamma: speed of the rise.

    >>> [round(reversal_strength(p), 3) for p in (0, 0.1, 1)]
    [0.0, 0.462, 1.0]
    """
    return 2 / (1 + math.exp(-gamma * progress)) - 1
