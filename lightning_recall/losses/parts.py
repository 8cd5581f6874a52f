"""Splits the queries of a batch into blocks for the matrix products, and blocks into parts for the comparisons."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

BLOCK_ELEMENTS = 2**21  # number of similarities per block (8 MiB in fp32)
BLOCK_QUERIES = 256  # minimum number of queries per block: small matmuls are slow
PART_ELEMENTS = 2**21  # number of comparisons per part (8 MiB in fp32): read six times, so they should fit in cache
GPU_ELEMENTS = 2**25  # limit of blocks and of parts on a GPU (128 MiB): smaller parts are launch-bound


def block_limits(num_items: int, device: torch.device) -> tuple[int, int]:
    """Number of queries per block, and largest number of comparisons per part."""
    on_cpu = device.type == "cpu"
    block_elements, part_elements = (BLOCK_ELEMENTS, PART_ELEMENTS) if on_cpu else (GPU_ELEMENTS, GPU_ELEMENTS)
    return max(BLOCK_QUERIES, block_elements // num_items), part_elements


class Part(NamedTuple):
    """Consecutive queries that are compared at once.

    Attributes:
        queries: their positions.
        num_positives: the largest number of positives of one of them.
    """

    queries: slice
    num_positives: int


def split_into_blocks(
    num_positives: list[int], num_items: int, block_size: int, part_elements: int
) -> Iterator[list[Part]]:
    """Yields the parts of each block of `block_size` queries.

    A part has at most `part_elements` comparisons; a query with more than that is a part by itself. `num_positives` is
    the number of positives per query, ascending.
    """
    for start in range(0, len(num_positives), block_size):
        stop, part_start, parts = min(start + block_size, len(num_positives)), start, []
        while part_start < stop:
            part_stop = part_start + 1
            while (
                part_stop < stop
                and (part_stop + 1 - part_start) * num_positives[part_stop] * num_items <= part_elements
            ):
                part_stop += 1
            parts.append(Part(slice(part_start, part_stop), num_positives[part_stop - 1]))
            part_start = part_stop
        yield parts
