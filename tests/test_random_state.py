import io
import random

import numpy as np
import pytest
import torch

from lightning_recall.random_state import get_random_state, preserve_random_state, set_random_state

GLOBAL = np.random.mtrand._rand  # the global generator that users draw from


def draw():
    """Numbers of each generator; `normal` and `gauss` keep a second number in the state."""
    return random.random(), random.gauss(), GLOBAL.rand(), GLOBAL.normal(), torch.rand(()).item()


def test_a_state_that_is_set_gives_the_same_numbers():
    draw()
    state = get_random_state()
    expected = [draw() for _ in range(700)]  # beyond the 624 numbers that a Mersenne Twister computes at a time
    set_random_state(state)
    assert [draw() for _ in range(700)] == expected


def test_a_state_survives_a_file_of_weights_only():
    file = io.BytesIO()
    torch.save(get_random_state(), file)
    expected = draw()
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert draw() == expected


def test_without_torch_its_generator_is_not_touched():
    with preserve_random_state(with_torch=False):
        first = draw()
    second = draw()
    assert second[:4] == first[:4]
    assert second[4] != first[4]


def test_an_error_in_the_block_restores_too():
    state = get_random_state()
    expected = draw()
    set_random_state(state)
    with pytest.raises(ZeroDivisionError), preserve_random_state():
        draw()[0] / 0
    assert draw() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: its generator is restored")
def test_the_generator_of_a_gpu_is_restored():
    device = torch.device("cuda", 0)
    state = get_random_state(device=device)
    expected = torch.rand(3, device=device)
    set_random_state(state, device)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_other_devices_have_no_state():
    assert get_random_state(device=torch.device("cpu"))["device"] is None
    assert get_random_state(with_torch=False)["torch"] is None
