import random
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

from lightning_recall.recompute import largest_chunk_size

META = torch.device("meta")  # replaces a GPU: it computes nothing, and the network reports that memory is full


class Full(nn.Module):
    """Runs out of memory above `limit` rows."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.layers = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.tried = []

    def forward(self, x):
        self.tried.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError
        return {"embeddings": self.layers(x)}


@pytest.mark.parametrize(
    ("limit", "found", "tried"),
    [
        (100, 64, [16, 32, 64, 128]),
        (5, 4, [16, 8, 4]),
        (2000, 1000, [16, 32, 64, 128, 256, 512, 1000]),
        (999, 512, [16, 32, 64, 128, 256, 512, 1000]),
        (16, 16, [16, 32]),
    ],
)
def test_the_chunk_size_doubles_and_halves(limit, found, tried):
    net = Full(limit).to(META)
    assert largest_chunk_size(net, torch.empty(1000, 6, device=META), META) == found
    assert net.tried == tried


def test_a_small_batch_is_one_chunk():
    assert largest_chunk_size(Full(99).to(META), {"a": torch.empty(3, 6)}["a"], META) == 3


def test_mappings_and_entries_that_are_none():
    class Fed(Full):
        def forward(self, batch):
            assert type(batch) is dict
            assert batch["mask"] is None
            return super().forward(batch["image"])

    batch = UserDict(mask=None, image=torch.empty(40, 6))
    assert largest_chunk_size(Fed(20).to(META), batch, META) == 16


def test_gradients_and_buffers_are_unchanged():
    net = Full(99).to(META)
    state = torch.get_rng_state()
    buffers = {name: (buffer, buffer._version) for name, buffer in net.named_buffers()}
    largest_chunk_size(net, torch.empty(50, 6), META)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert all(buffers[name] == (buffer, buffer._version) for name, buffer in net.named_buffers())


class DrawsElsewhere(Full):
    def forward(self, x):
        random.random()
        torch.rand(1)
        np.random.rand()  # noqa: NPY002  # the global generator is the point
        return super().forward(x)


def test_random_states_are_unchanged():
    net = DrawsElsewhere(99).to(META)
    state = torch.get_rng_state()
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # the global generator is the point
    largest_chunk_size(net, torch.empty(50, 6), META)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002  # the global generator is the point
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trial_enables_gradients_also_under_no_grad():
    net, modes = Full(99).to(META), []
    net.register_forward_pre_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    with torch.no_grad():
        largest_chunk_size(net, torch.empty(50, 6), META)
    assert set(modes) == {True}


def test_a_frozen_network_is_tried_without_backward():
    assert largest_chunk_size(Full(99).to(META).requires_grad_(False), torch.empty(50, 6), META) == 50


def test_a_cpu_needs_no_trial():
    net = Full(0)
    assert largest_chunk_size(net, torch.empty(1000, 6), torch.device("cpu")) == 128
    assert largest_chunk_size(net, torch.empty(10, 6), torch.device("cpu")) == 10
    assert net.tried == []


def test_a_network_that_does_not_fit_raises():
    with pytest.raises(ValueError, match="Not even one image fits"):
        largest_chunk_size(Full(0).to(META), torch.empty(1000, 6), META)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: its memory is filled")
def test_a_gpu_is_filled_except_for_the_free_fraction():
    device = torch.device("cuda")
    net = nn.Sequential(*(nn.Sequential(nn.Linear(4096, 4096), nn.ReLU()) for _ in range(32))).to(device)
    found = largest_chunk_size(net, torch.empty(2**20, 4096), device)
    torch.cuda.reset_peak_memory_stats()
    net(torch.randn(found, 4096, device=device)).sum().backward()
    total = torch.cuda.get_device_properties(device).total_memory
    assert 0.3 * total < torch.cuda.max_memory_allocated() < 0.9 * total
