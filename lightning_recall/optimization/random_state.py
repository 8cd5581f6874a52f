"""The random numbers of every process, in a checkpoint: with them a resumed training draws as if never interrupted."""

import os
import random
from typing import Any

import numpy as np
import torch
from torch import distributed

from lightning_recall._lightning import rank_zero_warn

SEED = "PL_GLOBAL_SEED"  # where seed_everything keeps its seed


def random_states(device: torch.device) -> list[dict[str, Any]]:
    """States of Python's, numpy's, torch's and the device's global generators, one dict for each process.

    All processes must call it. The dicts hold what `torch.load(weights_only=True)` takes.
    """
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # what augmentations draw from
    state = {
        "python": random.getstate(),
        "numpy": (name, np.asarray(key).tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "seed": os.environ.get(SEED),
    }
    if not distributed.is_available() or not distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, state)
    return states


def restore_random_state(states: list[dict[str, Any]], rank: int, world_size: int, device: torch.device) -> None:
    """Sets this process's generators as they were.

    Warns if there were other processes then, and of a seed that this process was given in vain.
    """
    if len(states) != world_size:
        rank_zero_warn(
            f"The checkpoint comes from {len(states)} processes, and {world_size} resume it: dropout and other random "
            "numbers start anew."
        )
        return
    state = states[rank]
    seed, given = state.get("seed"), os.environ.get(SEED)
    if None not in (seed, given) and seed != given:
        rank_zero_warn(
            f"Seed {given} is not used: a resumed training keeps the random numbers of its checkpoint, which began "
            f"with seed {seed}. To train with another seed, start a new training."
        )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    numbers = np.array(key, dtype=np.uint32)
    np.random.set_state((name, numbers, position, has_gauss, cached))  # noqa: NPY002  # what augmentations draw from
    torch.set_rng_state(state["torch"].cpu())
    if state["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"].cpu(), device)
