"""Check of batches for networks with BatchNorm on vectors."""

from torch import Tensor, nn


def check_batch_norm(network: nn.Module, inputs: Tensor) -> None:
    """Raises ValueError if a network in training normalises vectors with BatchNorm, and gets a single input.

    Args:
        network: layers on features (B, D).
        inputs: (B, ...).
    """
    if len(inputs) == 1 and any(isinstance(layer, nn.BatchNorm1d) and layer.training for layer in network.modules()):
        raise ValueError(
            "BatchNorm needs at least 2 images of each domain per process in training, got 1: set a larger batch_size."
        )
