import datetime
import os

import pytest
import torch
from torch import distributed

from lightning_recall import gather_rows


def run_process(rank, world, folder, function):
    """Process `rank` of `world`: saves what `function(rank)` returns or raises."""
    torch.set_num_threads(1)
    store, timeout = f"file://{folder / 'store'}", datetime.timedelta(seconds=20)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
    try:
        found = function(rank)
    except Exception as error:
        found = error
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)


def run_processes(function, world, folder):
    """Runs `function(rank)` in several processes and returns their results."""
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=run_process, args=(rank, world, folder, function)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


LARGE = [2**63 - 1, -(2**63), 9 * 10**15 + 1]  # floats cannot distinguish them from their neighbours


def many_kinds(rank):
    generator = torch.Generator().manual_seed(rank)
    floats = torch.randn(2 * (rank + 1), 3, generator=generator)
    return [
        gather_rows(rows)
        for rows in (
            floats.half(),
            floats.bfloat16(),
            floats.double()[::2],
            torch.complex(floats, -floats),
            floats > 0,
            torch.tensor(LARGE[: rank + 1]),
            torch.tensor([2**64 - 1, 2**63 + 1], dtype=torch.uint64)[: rank + 1],
            torch.tensor([2**32 - 1], dtype=torch.uint32),
            torch.tensor([[60_000 + rank]], dtype=torch.uint16),
            torch.tensor([-30_000 - rank], dtype=torch.int16),
            torch.full((rank, 2, 2), 200, dtype=torch.uint8),  # the first process has none
            torch.ones(0, 4),
        )
    ]


def test_rows_of_any_dtype_and_number_arrive_unchanged(tmp_path):
    first, second = run_processes(many_kinds, 2, tmp_path)
    floats = [torch.randn(2 * (rank + 1), 3, generator=torch.Generator().manual_seed(rank)) for rank in range(2)]
    expected = [
        torch.cat([part.half() for part in floats]),
        torch.cat([part.bfloat16() for part in floats]),
        torch.cat([part.double()[::2] for part in floats]),
        torch.cat([torch.complex(part, -part) for part in floats]),
        torch.cat([part > 0 for part in floats]),
        torch.tensor([LARGE[0], *LARGE[:2]]),
        torch.tensor([2**64 - 1, 2**64 - 1, 2**63 + 1], dtype=torch.uint64),
        torch.tensor([2**32 - 1] * 2, dtype=torch.uint32),
        torch.tensor([[60_000], [60_001]], dtype=torch.uint16),
        torch.tensor([-30_000, -30_001], dtype=torch.int16),
        torch.full((1, 2, 2), 200, dtype=torch.uint8),
        torch.ones(0, 4),
    ]
    for found in (first, second):
        for actual, right in zip(found, expected, strict=True):
            assert actual.dtype == right.dtype
            assert torch.equal(actual, right)


def mismatched(rank):
    found = []
    for rows in (
        torch.ones(2, 3 + rank),
        torch.ones(2, 3, dtype=[torch.float32, torch.float64][rank]),
        torch.ones(6).view(*[(6,), (2, 3)][rank]),
    ):
        with pytest.raises(ValueError, match="the same dtype and trailing dimensions on all processes") as caught:
            gather_rows(rows)
        found.append(str(caught.value))
    with torch.set_grad_enabled(rank == 0), pytest.raises(ValueError, match="other processes run under"):
        gather_rows(torch.ones(2, 3, requires_grad=True))
    return found


def test_mismatched_rows_are_rejected_on_every_process(tmp_path):
    first, second = run_processes(mismatched, 2, tmp_path)
    start = "rows must have the same dtype and trailing dimensions on all processes, got torch.float32 "
    assert first == second
    assert first == [
        start + "(b, 3), torch.float32 (b, 4).",
        start + "(b, 3), torch.float64 (b, 3).",
        start + "(b), torch.float32 (b, 3).",
    ]


ROWS = torch.linspace(-1, 2, 15, dtype=torch.float64).view(5, 3)
LOCAL = (slice(0, 0), slice(0, 2), slice(2, 5))  # the first of three processes has no rows


def derivatives(rank):
    local = ROWS[LOCAL[rank]].clone().requires_grad_()
    gathered = gather_rows(local)
    loss = (gathered @ gathered.T).tanh().square().sum()
    (first,) = torch.autograd.grad(loss, local, create_graph=True)
    first.pow(3).sum().backward()
    return first.detach(), local.grad


def test_first_and_second_derivatives_are_those_of_one_process(tmp_path):
    """Each of three processes computes the full loss, so derivatives are three times those of one process."""
    answers = run_processes(derivatives, 3, tmp_path)
    rows = ROWS.clone().requires_grad_()
    loss = 3 * (rows @ rows.T).tanh().square().sum()
    (first,) = torch.autograd.grad(loss, rows, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), rows)
    assert second.abs().min() > 1e-3
    for rank in range(3):
        torch.testing.assert_close(answers[rank][0], first[LOCAL[rank]].detach(), atol=1e-12, rtol=0)
        torch.testing.assert_close(answers[rank][1], second[LOCAL[rank]], atol=1e-10, rtol=1e-12)


def one_requires_a_gradient(rank):
    local = torch.ones(2, 3, requires_grad=rank == 1)
    gathered = gather_rows(local)
    gathered.sum().backward()  # would deadlock if one process took no part
    with torch.no_grad():
        assert not gather_rows(local).requires_grad
    assert not gather_rows(local.detach()).requires_grad
    return local.grad


def test_all_processes_take_part_in_backward(tmp_path):
    first, second = run_processes(one_requires_a_gradient, 2, tmp_path)
    assert first is None
    assert torch.equal(second, torch.full((2, 3), 2.0))  # the sum over both processes


def test_a_single_process_returns_its_input():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows


@pytest.mark.parametrize(("rows", "got"), [([1, 2], "list"), (torch.tensor(1.0), r"shape \(\)")])
def test_other_arguments_are_rejected(rows, got):
    with pytest.raises(ValueError, match=rf"rows must be a tensor \(b, ...\) of 1 to 8 dimensions, got {got}"):
        gather_rows(rows)
