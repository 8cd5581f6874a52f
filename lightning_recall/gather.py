"""Gathers the tensors of all processes into one batch, with exact gradients."""

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, distributed

MAX_DIMS = 8  # largest number of dimensions: processes exchange their shapes padded to this length
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
SENT_AS_BYTES = {torch.int16, torch.uint16, torch.uint32, torch.uint64}  # gloo does not support these dtypes


class GradState(IntEnum):
    """Gradient state of a process, exchanged before gathering."""

    DISABLED = 0  # under torch.no_grad()
    NOT_REQUIRED = 1
    REQUIRED = 2


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenates the tensors of all processes in rank order, with gradients; in a single process returns the input.

    Processes may hold different numbers of rows, or none. In backward each process receives the gradient of its rows,
    summed over all processes. If the loss is a sum of per-process terms, the gradient equals that of one process with
    the whole batch. DistributedDataParallel averages gradients, so multiply each term by the number of processes. If
    every process computes the full loss, do not multiply. Derivatives of any order are exact. If the rows of any
    process require a gradient, the result requires one on every process, so that all take part in backward.

    Args:
        rows: (b, ...) tensor of this process. Its dtype and trailing dimensions must match on all processes.

    Returns:
        (N, ...), the same on every process.

    Raises:
        ValueError: if rows is not a tensor with 1 to 8 dimensions; on all processes, if dtypes or trailing dimensions
            differ, or if the tensors of some processes require a gradient while other processes run under
            `torch.no_grad()`.

    >>> gather_rows(torch.ones(3, 2)).shape
    torch.Size([3, 2])
    """
    check_rows(rows)
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    sizes, any_requires_grad = exchange_shapes(rows)
    if any_requires_grad and not rows.requires_grad:
        rows = rows.detach().requires_grad_()
    gathered: Tensor = _AllGather.apply(rows, sizes)
    return gathered


def check_rows(rows: Any) -> None:
    """Raises ValueError unless rows is a tensor with 1 to MAX_DIMS dimensions."""
    if not isinstance(rows, Tensor) or not 1 <= rows.ndim <= MAX_DIMS:
        got = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"rows must be a tensor (b, ...) of 1 to {MAX_DIMS} dimensions, got {got}.")


def exchange_shapes(rows: Tensor) -> tuple[list[int], bool]:
    """Returns the number of rows of each process, and whether any process requires a gradient.

    Raises:
        ValueError: on all processes, if dtypes or trailing dimensions differ, or if the tensors of some processes
            require a gradient while other processes run under `torch.no_grad()`.
    """
    grad_state = GradState.DISABLED
    if torch.is_grad_enabled():
        grad_state = GradState.REQUIRED if rows.requires_grad else GradState.NOT_REQUIRED
    dims = [*rows.shape[1:], *[-1] * (MAX_DIMS - rows.ndim)]
    header = torch.tensor([len(rows), grad_state, DTYPES.index(rows.dtype), *dims], device=rows.device)
    gathered = [torch.empty_like(header) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, header)
    headers = torch.stack(gathered).tolist()
    signatures = [f"{DTYPES[dtype]} (b{''.join(f', {d}' for d in dims if d >= 0)})" for _, _, dtype, *dims in headers]
    if len(set(signatures)) > 1:
        raise ValueError(
            f"rows must have the same dtype and trailing dimensions on all processes, got {', '.join(signatures)}."
        )
    grad_states = {state for _, state, *_ in headers}
    if grad_states >= {GradState.DISABLED, GradState.REQUIRED}:
        raise ValueError("rows require a gradient on some processes, but other processes run under torch.no_grad().")
    return [size for size, *_ in headers], GradState.REQUIRED in grad_states


class _AllGather(torch.autograd.Function):
    """All-gather with padding for unequal sizes; backward reduce-scatters the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        as_bytes = rows.dtype in SENT_AS_BYTES
        sent = padded[..., None].view(torch.uint8) if as_bytes else padded  # (B, ...) or (B, ..., bytes)
        received = [torch.empty_like(sent) for _ in sizes]
        distributed.all_gather(received, sent)
        gathered = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
        return gathered.view(rows.dtype)[..., 0] if as_bytes else gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        local_gradient: Tensor = _ReduceScatter.apply(gradient, ctx.sizes)
        return local_gradient, None


class _ReduceScatter(torch.autograd.Function):
    """Sums the gradient (N, ...) over the processes and returns the local slice (b, ...); backward all-gathers."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        rank = distributed.get_rank()
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[sum(sizes[:rank]) : sum(sizes[: rank + 1])]

    @staticmethod
    def backward(ctx: Any, local_gradient: Tensor) -> tuple[Tensor, None]:
        gathered: Tensor = _AllGather.apply(local_gradient, ctx.sizes)
        return gathered, None
