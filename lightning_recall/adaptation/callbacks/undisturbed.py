"""Uses a module for a picture in the middle of a training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_recall._lightning import LightningModule
from lightning_recall.evaluation_mode import evaluation_mode
from lightning_recall.random_state import preserve_random_state


@contextmanager
def undisturbed(module: LightningModule) -> Iterator[None]:
    """Context manager in evaluation mode and without gradients, after which a training continues as without it.

    The modes of all layers, and the states of the random generators of Python, NumPy, torch and the module's device
    are restored on exit.
    """
    with preserve_random_state(device=module.device), evaluation_mode(module), torch.no_grad():
        yield
