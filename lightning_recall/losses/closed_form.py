"""Gradients in closed form have no second derivative: they say so."""

from typing import Any

import torch
from torch import Tensor


def first_order(gradient: Tensor, embeddings: Tensor) -> Tensor:
    """A gradient (N, D) by embeddings (N, D), computed in closed form: its own derivative raises an error.

    The gradient of a loss in closed form is a number to autograd: without the error, `create_graph=True` would take it
    as a constant, and a gradient penalty would lose its largest part.
    """
    if not torch.is_grad_enabled():  # without create_graph
        return gradient
    marked: Tensor = _FirstOrder.apply(gradient, embeddings)
    return marked


class _FirstOrder(torch.autograd.Function):
    """The gradient as it is, differentiable by the embeddings in name only."""

    @staticmethod
    def forward(_: Any, gradient: Tensor, embeddings: Tensor) -> Tensor:  # noqa: ARG004  # only leads there
        return gradient.view_as(gradient)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "This loss has no second derivative by the embeddings: its gradient is computed in closed form, or with "
            "weights that are constants. For a gradient penalty or a Hessian, take a loss in plain autograd, such as "
            "NormalizedSoftmaxLoss."
        )
