"""The rows of all processes as one batch, with exact gradients."""

from typing import Any

import torch
from torch import Tensor, distributed


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks, differentiably; in one process, the rows.

    Processes may hold different numbers of rows. In backward each one's rows get the sum of what all processes derive
    for them. So for a loss that is the sum over the processes of a share each, the gradient is that of one process
    with all the rows, where DistributedDataParallel averages it: multiply each share by the number of processes. A
    whole loss on every process needs no factor.

    Args:
        rows: (b, ...) of this process; dtype and all sizes but the first are the same everywhere.

    Returns:
        (N, ...), the same on every process.

    >>> gather_rows(torch.ones(3, 2)).shape
    torch.Size([3, 2])
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class _GatherRows(torch.autograd.Function):
    """All-gather of rows, padded where processes hold different numbers; backward sums and takes the own part."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world_size = distributed.get_world_size()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size)]
        distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        sizes = torch.cat(counts).tolist()
        rank = distributed.get_rank()
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own: Tensor = _SumOwnRows.apply(gradient, ctx.own)
        return own


class _SumOwnRows(torch.autograd.Function):
    """The own part (b, ...) of the sum over the processes of rows (N, ...); its backward gathers, for create_graph."""

    @staticmethod
    def forward(_: Any, rows: Tensor, own: slice) -> Tensor:
        total = rows.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[own].clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gather_rows(gradient), None
