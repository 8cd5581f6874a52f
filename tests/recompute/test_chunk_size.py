import random
import time
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

from lightning_recall.recompute import auto_chunk_size, largest_chunk_size
from lightning_recall.recompute.chunk_size import fastest_chunk_size, step_seconds

CPU = torch.device("cpu")
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


def test_the_largest_size_on_a_cpu_needs_no_trial():
    net = Full(0)
    assert largest_chunk_size(net, torch.empty(1000, 6), CPU) == 128
    assert largest_chunk_size(net, torch.empty(10, 6), CPU) == 10
    assert net.tried == []


def rows(*counts):
    return [torch.empty(count, 6) for count in counts]


def measured(times, measured_sizes=None):
    """Times (forward, forward and backward) of a row in microseconds by chunk size, instead of those of a network."""

    def measure(size):
        if measured_sizes is not None:
            measured_sizes.append(size)
        forward, forward_backward = times[size]
        return forward * 1e-6, forward_backward * 1e-6

    return measure


@pytest.mark.parametrize(
    ("counts", "keep_chunks", "times", "found"),
    [
        # 4 chunks of 128: 512 rows forward and backward, and all but the last chunk forward again
        ([512], 1, {16: (1, 3), 32: (1, 3), 64: (1, 3), 128: (1, 3)}, 128),
        ([512], 1, {16: (1, 3), 32: (0.7, 2.1), 64: (0.9, 2.7), 128: (1, 3)}, 32),
        ([512], 1, {16: (1, 3), 32: (0.95, 2.9), 64: (0.95, 2.9), 128: (1, 3)}, 128),  # not a tenth faster
        # a whole batch of 116 in one pass repeats nothing; 58 rows must be a third faster
        ([116], 1, {16: (1, 3), 32: (0.8, 2.4), 64: (0.8, 2.6), 116: (1, 3)}, 116),
        ([116], 9, {16: (1, 3), 32: (0.8, 2.4), 64: (0.8, 2.8), 116: (1, 3)}, 32),  # all chunks are kept
        ([100, 4], 1, {16: (1, 3), 32: (1, 3), 64: (0.5, 1.5), 100: (1, 3)}, 64),
        ([10, 4], 1, {}, 10),
    ],
)
def test_the_fastest_step_on_a_cpu(counts, keep_chunks, times, found):
    assert fastest_chunk_size(Full(9).eval(), rows(*counts), keep_chunks, measured(times)) == found


@pytest.mark.parametrize(
    ("count", "size", "keep_chunks", "seconds"),
    [
        (512, 128, 1, 512 * 3 + 384),
        (512, 128, 2, 512 * 3 + 256),
        (116, 128, 1, 116 * 3),
        (116, 29, 4, 116 * 3),
        (116, 32, 1, 116 * 3 + 87),  # split evenly: 4 chunks of 29
    ],
)
def test_seconds_of_a_step_by_hand(count, size, keep_chunks, seconds):
    assert step_seconds([count], size, keep_chunks, (1, 3)) == pytest.approx(seconds)


def test_sizes_without_time_left_are_not_tried():
    tried, slow = [], (1e6, 3e6)  # 3 seconds for a row: a trial of 32 would take 192
    found = fastest_chunk_size(Full(9).eval(), rows(512), 1, measured(dict.fromkeys([16, 32, 64, 128], slow), tried))
    assert (found, tried) == (128, [16])


def test_batch_norm_in_train_mode_keeps_the_size_fixed():
    net = Full(999)
    assert auto_chunk_size(net, rows(300), CPU) == 128
    assert net.tried == []
    net.eval()
    auto_chunk_size(net, rows(300), CPU)
    assert net.tried == [16, 16, 32, 32, 64, 64, 128, 128]  # a warm-up and a measurement each
    net.layers[1].running_mean = None  # then eval mode uses the statistics of the chunk, too
    assert auto_chunk_size(net, rows(300), CPU) == 128
    assert len(net.tried) == 8


class SlowAbove(Full):
    """Takes 1 ms for a row, and 3 ms in chunks of more than `limit` rows."""

    def forward(self, x):
        time.sleep(len(x) * (0.001 if len(x) <= self.limit else 0.003))
        return self.layers(x)


def test_a_cpu_is_measured():
    assert auto_chunk_size(SlowAbove(40).eval(), rows(500), CPU) in (16, 32)


def test_the_largest_chunk_is_measured_on_a_gpu():
    net = Full(40).to(META)
    assert auto_chunk_size(net, [*rows(20), *rows(100)], META) == 32


def test_trials_on_a_cpu_leave_no_trace():
    net = DrawsElsewhere(999)
    net.layers[1].eval()  # BatchNorm
    net.layers[1].register_buffer("passes", torch.zeros(()))
    net.layers[1].register_forward_hook(lambda layer, *_: layer.passes.add_(1) and None)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # the global generator is the point
    auto_chunk_size(net, rows(300), CPU)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # the global generator is the point
    assert len(net.tried) == 8
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert net.layers[1].passes == 0
    assert all(p.grad is None for p in net.parameters())


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
