"""Embeddings that lie in several pieces, or on disk, read a block of rows at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = Tensor | NDArray[np.floating] | Sequence[Tensor | NDArray[np.floating]]
"""(N, D) of any float type, in one piece or in several, one above the other; memory-mapped ones are read blockwise"""

BLOCK_ROWS = 4096  # read at a time where all are gone through


class EmbeddingBlocks:
    """Rows (N, D) in one or several pieces, of unit length as they are read.

    Args:
        rows: the pieces, of any float types, on any devices.
        normalize: whether each row is scaled to unit length; False: all by one factor, so that none is longer.
        device: where blocks of rows are wanted.

    Raises:
        ValueError: for pieces that are no tensors or arrays, or no floating point matrices of equal width.
    """

    def __init__(self, rows: Rows, normalize: bool = True, device: torch.device | str = "cpu") -> None:
        pieces = [rows] if isinstance(rows, Tensor | np.ndarray) else list(rows)
        for piece in pieces:
            if not isinstance(piece, Tensor | np.ndarray):
                raise ValueError(f"Pieces must be tensors or arrays (N, D), got {type(piece).__name__}.")
            floating = piece.is_floating_point() if isinstance(piece, Tensor) else piece.dtype.kind == "f"
            if not floating:
                raise ValueError(f"embeddings must be floating point, got {piece.dtype}.")
        shapes = {tuple(piece.shape[1:]) for piece in pieces}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise ValueError(f"Pieces must be matrices (N, D) of one width D, got {[tuple(p.shape) for p in pieces]}.")
        self.pieces = [piece for piece in pieces if len(piece)]
        self.ends = np.cumsum([0, *(len(piece) for piece in self.pieces)])
        self.dim = int(next(iter(shapes))[0]) if shapes else 0
        self.device = torch.device(device)
        self.scale = None if normalize else self.longest()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def longest(self) -> float:
        """Length of the longest row; 1 if all are zero."""
        starts = range(0, len(self), BLOCK_ROWS)
        lengths = [float(self.raw(start, start + BLOCK_ROWS).double().norm(dim=1).max()) for start in starts]
        return max(lengths, default=1.0) or 1.0

    def raw(self, start: int, stop: int) -> Tensor:
        """Rows from `start` to `stop` as they are."""
        parts = []
        for piece, first in zip(self.pieces, self.ends[:-1], strict=True):
            part = piece[max(start - first, 0) : max(stop - first, 0)]
            if len(part):
                parts.append(to_tensor(part).to(self.device))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def block(self, start: int, stop: int) -> Tensor:
        """Rows (stop - start, D) in fp32."""
        rows = self.raw(start, stop)
        return self.scaled(rows if rows.dtype == torch.float64 else rows.float()).float()

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows (n, D) of these numbers (n,), in float64."""
        if len(self.pieces) == 1:
            return self.scaled(take(self.pieces[0], numbers).to(self.device).double())
        found = torch.empty(len(numbers), self.dim, dtype=torch.float64, device=self.device)
        of_piece = np.searchsorted(self.ends, numbers.cpu().numpy(), side="right") - 1
        for piece in np.unique(of_piece):
            here = torch.from_numpy(of_piece == piece).to(numbers.device)
            part = take(self.pieces[piece], numbers[here] - int(self.ends[piece]))
            found[here.to(self.device)] = part.to(self.device).double()
        return self.scaled(found)

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows (n, D) of unit length, or of at most unit length."""
        if self.scale is not None:
            return rows / self.scale
        lengths: Tensor = torch.linalg.vector_norm(
            rows, dim=1, keepdim=True, dtype=torch.float64
        )  # fp16 would overflow
        return rows / lengths.clamp(min=1e-12).to(rows.dtype)


def to_tensor(part: Tensor | NDArray[np.floating]) -> Tensor:
    """A tensor of these numbers; memory-mapped ones are read."""
    return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def take(piece: Tensor | NDArray[np.floating], numbers: Tensor) -> Tensor:
    """Rows of a piece by number (n,)."""
    if isinstance(piece, Tensor):
        return piece.index_select(0, numbers.to(piece.device))
    return torch.from_numpy(np.asarray(piece[numbers.cpu().numpy()]))
