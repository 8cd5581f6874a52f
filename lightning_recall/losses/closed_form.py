"""Raises an error when a closed-form gradient is differentiated a second time."""

from typing import Any

import torch
from torch import Tensor


def forbid_double_backward(gradient: Tensor, embeddings: Tensor) -> Tensor:
    """Marks a closed-form gradient so that double backward raises an error.

    Autograd treats a closed-form gradient as a constant. Without the error, a gradient penalty with `create_graph=True`
    would silently lose its main term.

    Args:
        gradient: (N, D), the derivative of the loss with respect to the embeddings.
        embeddings: (N, D).
    """
    if not torch.is_grad_enabled():  # without create_graph
        return gradient
    marked: Tensor = _FirstOrder.apply(gradient, embeddings)
    return marked


class _FirstOrder(torch.autograd.Function):
    """Identity on the gradient, connected to the embeddings so that double backward raises."""

    @staticmethod
    def forward(_: Any, gradient: Tensor, embeddings: Tensor) -> Tensor:  # noqa: ARG004  # connects the result to the embeddings
        return gradient.view_as(gradient)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # the error that torch raises for operations without a second derivative
        raise NotImplementedError(
            "This loss has no second derivative with respect to the embeddings: its gradient is computed in closed "
            "form, or with weights that are constants. For a gradient penalty or a Hessian, use a loss that "
            "is differentiated by autograd, such as NormalizedSoftmaxLoss."
        )
