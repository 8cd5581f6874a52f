import random
import warnings

import numpy as np
import pytest
import torch

from lightning_recall.optimization.distributed_random_states import get_random_states, set_random_states

CPU = torch.device("cpu")


def draw():
    normal = float(np.random.standard_normal())  # noqa: NPY002  # what augmentations draw from
    return random.random(), random.gauss(0, 1), normal, float(torch.rand(()))


def test_all_generators_repeat_their_draws(tmp_path):
    draw()  # Python and numpy keep the second of a pair of normal numbers
    torch.save(get_random_states(CPU), tmp_path / "states.pt")
    expected = draw()
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    set_random_states(states, 0, 1, CPU)
    assert draw() == expected


def test_each_process_restores_its_own_state():
    states, expected = [], []
    for _ in range(2):
        states += get_random_states(CPU)
        expected.append(draw())
    set_random_states(states, 1, 2, CPU)
    assert draw() == expected[1]


def test_states_of_another_number_of_processes_are_not_restored():
    states = 2 * get_random_states(CPU)
    draw()
    before = get_random_states(CPU)
    with pytest.warns(UserWarning, match="saved with 2 processes, but this run has 3"):
        set_random_states(states, 0, 3, CPU)
    expected = draw()
    set_random_states(before, 0, 1, CPU)
    assert draw() == expected  # as if nothing had been restored


def test_the_state_of_a_gpu_is_saved_and_restored_on_a_gpu_only(monkeypatch):
    gpu, kept, restored = torch.device("cuda", 1), torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: kept if device == gpu else None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *args: restored.append(args))
    (without,), (state,) = get_random_states(CPU), get_random_states(gpu)
    assert without["device"] is None
    assert state["device"] is kept
    set_random_states([state], 0, 1, CPU)
    set_random_states([without], 0, 1, gpu)
    assert restored == []
    set_random_states([state], 0, 1, gpu)
    ((found, device),) = restored
    assert torch.equal(found, kept)
    assert device == gpu


@pytest.mark.parametrize(("saved", "given"), [("3", "5"), ("3", "3"), (None, "5"), ("3", None)])
def test_a_seed_without_effect_warns(saved, given, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", saved) if saved else monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    states = get_random_states(CPU)
    monkeypatch.setenv("PL_GLOBAL_SEED", given) if given else monkeypatch.delenv("PL_GLOBAL_SEED")
    expected = draw()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_random_states(states, 0, 1, CPU)
    assert draw() == expected
    assert [str(warning.message).split(":")[0] for warning in caught] == (
        ["Seed 5 is not used"] if (saved, given) == ("3", "5") else []
    )
    set_random_states([{key: value for key, value in states[0].items() if key != "seed"}], 0, 1, CPU)  # as before
    assert draw() == expected
