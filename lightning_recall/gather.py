"""The rows of all processes as one batch, with exact gradients."""

from typing import Any

import torch
from torch import Tensor, distributed

MAX_DIMS = 8  # of rows, whose sizes processes compare
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
SENT_AS_BYTES = {torch.int16, torch.uint16, torch.uint32, torch.uint64}  # gloo takes none of them


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks, differentiably; in one process, the rows.

    Processes may hold different numbers of rows, or none. In backward each one's rows get the sum of what all processes
    derive for them. So for a loss that is the sum over the processes of a share each, the gradient is that of one
    process with all the rows, where DistributedDataParallel averages it: multiply each share by the number of
    processes. A whole loss on every process needs no factor. Derivatives of any order are exact. If one process's rows
    require a gradient, the gathered ones do on all, so that all take part in backward.

    Args:
        rows: (b, ...) of this process; dtype and all sizes but the first are the same everywhere.

    Returns:
        (N, ...), the same on every process.

    Raises:
        ValueError: for a scalar or what is no tensor, and, on all processes, for rows that differ between them in dtype
            or width, or need a gradient on some while others compute none.

    >>> gather_rows(torch.ones(3, 2)).shape
    torch.Size([3, 2])
    """
    check_rows(rows)
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    sizes, any_requires_grad = compare_rows(rows)
    if any_requires_grad and not rows.requires_grad:
        rows = rows.detach().requires_grad_()
    gathered: Tensor = _GatherRows.apply(rows, sizes)
    return gathered


def check_rows(rows: Any) -> None:
    """Raises ValueError for what is no tensor of rows."""
    if not isinstance(rows, Tensor) or not 1 <= rows.ndim <= MAX_DIMS:
        got = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"rows must be a tensor (b, ...) of 1 to {MAX_DIMS} dimensions, got {got}.")


def compare_rows(rows: Tensor) -> tuple[list[int], bool]:
    """How many rows each process has, and whether any of them require a gradient.

    Raises:
        ValueError: on all processes, if their rows do not fit together.
    """
    grad = int(torch.is_grad_enabled()) + int(torch.is_grad_enabled() and rows.requires_grad)
    widths = [*rows.shape[1:], *[-1] * (MAX_DIMS - rows.ndim)]
    own = torch.tensor([len(rows), grad, DTYPES.index(rows.dtype), *widths], device=rows.device)
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    every = torch.stack(parts).tolist()
    kinds = [f"{DTYPES[dtype]} (b{''.join(f', {d}' for d in dims if d >= 0)})" for _, _, dtype, *dims in every]
    if len(set(kinds)) > 1:
        raise ValueError(f"rows must have one dtype and width on all processes, got {', '.join(kinds)}.")
    grads = {row[1] for row in every}
    if grads >= {0, 2}:
        raise ValueError("rows require a gradient on some processes, while others compute none (no_grad).")
    return [row[0] for row in every], 2 in grads


class _GatherRows(torch.autograd.Function):
    """All-gather of rows, padded where processes hold different numbers; backward sums and takes the own part."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        as_bytes = rows.dtype in SENT_AS_BYTES
        sent = padded[..., None].view(torch.uint8) if as_bytes else padded  # (B, ...) or (B, ..., bytes)
        parts = [torch.empty_like(sent) for _ in sizes]
        distributed.all_gather(parts, sent)
        gathered = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return gathered.view(rows.dtype)[..., 0] if as_bytes else gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own: Tensor = _SumRows.apply(gradient, ctx.sizes)
        return own, None


class _SumRows(torch.autograd.Function):
    """Own part (b, ...) of the sum over the processes of rows (N, ...); backward gathers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        rank = distributed.get_rank()
        total = rows.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[sum(sizes[:rank]) : sum(sizes[: rank + 1])]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gathered: Tensor = _GatherRows.apply(gradient, ctx.sizes)
        return gathered, None
