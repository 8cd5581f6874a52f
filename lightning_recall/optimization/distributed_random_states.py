"""Saves and restores the RNG state of every process, so that a resumed training is reproducible."""

import os
from typing import Any

import torch
from torch import distributed

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.random_state import RandomState, get_random_state, set_random_state

SEED = "PL_GLOBAL_SEED"  # environment variable in which seed_everything saves its seed


def get_random_states(device: torch.device) -> list[RandomState]:
    """RNG states of Python, numpy, torch and the device, and the seed, for each process.

    All processes must call it. All values can be loaded with `torch.load(weights_only=True)`.
    """
    state = {**get_random_state(device=device), "seed": os.environ.get(SEED)}
    if not distributed.is_available() or not distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, state)
    return states


def set_random_states(states: list[RandomState], rank: int, world_size: int, device: torch.device) -> None:
    """Restores this process's RNG state.

    Warns if the number of processes differs; then nothing is restored. Also warns if a new seed was set, because it
    has no effect.
    """
    if len(states) != world_size:
        rank_zero_warn(
            f"The checkpoint was saved with {len(states)} processes, but this run has {world_size}, so the RNG states "
            "are not restored."
        )
        return
    state = states[rank]
    seed, given = state.get("seed"), os.environ.get(SEED)
    if None not in (seed, given) and seed != given:
        rank_zero_warn(
            f"Seed {given} is not used: a resumed training keeps the random numbers of its checkpoint, which started "
            f"with seed {seed}. To train with another seed, start a new training."
        )
    set_random_state(state, device)
