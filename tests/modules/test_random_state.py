import random
import warnings

import numpy as np
import pytest
import torch

from lightning_recall.modules.random_state import random_states, restore_random_state

CPU = torch.device("cpu")


def numbers():
    return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002  # global on purpose


def test_the_numbers_go_on():
    states = random_states(CPU)
    expected = numbers()
    assert numbers() != expected
    restore_random_state(states, 0, 1, CPU)
    assert numbers() == expected


@pytest.mark.parametrize(("saved", "given"), [("3", "5"), ("3", "3"), (None, "5"), ("3", None)])
def test_a_seed_that_is_not_used_is_warned_of(saved, given, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", saved) if saved else monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    states = random_states(CPU)
    monkeypatch.setenv("PL_GLOBAL_SEED", given) if given else monkeypatch.delenv("PL_GLOBAL_SEED")
    expected = numbers()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restore_random_state(states, 0, 1, CPU)
    assert numbers() == expected
    assert [str(warning.message).split(":")[0] for warning in caught] == (
        ["Seed 5 is not used"] if (saved, given) == ("3", "5") else []
    )
    restore_random_state([{key: value for key, value in states[0].items() if key != "seed"}], 0, 1, CPU)  # as before
    assert numbers() == expected
