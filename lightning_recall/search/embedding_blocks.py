"""Embeddings in several tensors or memory-mapped files, read in blocks."""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.tensors import at_least_float32

EmbeddingsLike = Tensor | NDArray[np.floating] | Sequence[Tensor | NDArray[np.floating]]
"""(N, D) of any float type: one tensor or array, or several to be concatenated along dim 0; may be memory-mapped"""

BLOCK_SIZE = 4096  # embeddings per block when all are read


class EmbeddingBlocks:
    """Embeddings (N, D) in one or more tensors or arrays; normalised to unit length when read.

    Args:
        embeddings: one tensor or array (N, D), or a list of them, with any float types and devices.
        normalize: True: scale each embedding to unit length. False: divide all embeddings by the largest norm.
        device: device on which embeddings are returned.

    Raises:
        ValueError: if `embeddings` are not floating-point tensors or arrays (N, D) with the same D.

    >>> EmbeddingBlocks([torch.tensor([[3.0, 4.0]]), np.array([[0.0, 2.0]])]).block(0, 2)
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])
    """

    def __init__(self, embeddings: EmbeddingsLike, normalize: bool = True, device: torch.device | str = "cpu") -> None:
        pieces = [embeddings] if isinstance(embeddings, Tensor | np.ndarray) else list(embeddings)
        for piece in pieces:
            if not isinstance(piece, Tensor | np.ndarray):
                raise ValueError(f"embeddings must be tensors or arrays (N, D), got {type(piece).__name__}.")
            is_floating = piece.is_floating_point() if isinstance(piece, Tensor) else piece.dtype.kind == "f"
            if not is_floating:
                raise ValueError(f"embeddings must be floating point, got {piece.dtype}.")
        shapes = {tuple(piece.shape[1:]) for piece in pieces}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise ValueError(
                f"embeddings must be matrices (N, D) with the same D, got {[tuple(p.shape) for p in pieces]}."
            )
        self.pieces = [piece for piece in pieces if len(piece)]
        # piece i holds embeddings offsets[i] to offsets[i + 1] - 1
        self.offsets = np.cumsum([0, *(len(piece) for piece in self.pieces)])
        self.dim = int(next(iter(shapes))[0]) if shapes else 0
        self.device = torch.device(device)
        self.order: Tensor | None = None
        self.scale = None if normalize else self._max_norm()

    def __len__(self) -> int:
        return int(self.offsets[-1]) if self.order is None else len(self.order)

    def reordered(self, order: Tensor) -> "EmbeddingBlocks":
        """The embeddings at the given indices (n,), in this order; they are copied when they are read."""
        blocks = copy(self)
        blocks.order = order if self.order is None else self.order[order]
        return blocks

    def _max_norm(self) -> float:
        """The largest norm of an embedding; 1 if all are zero."""
        starts = range(0, len(self), BLOCK_SIZE)
        stops = (min(start + BLOCK_SIZE, len(self)) for start in starts)
        norms = [
            float(self._raw(start, stop).double().norm(dim=1).max()) for start, stop in zip(starts, stops, strict=True)
        ]
        return max(norms, default=1.0) or 1.0

    def _raw(self, start: int, stop: int) -> Tensor:
        """Embeddings from `start` to `stop` without scaling, in their original dtype."""
        if self.order is not None:
            return self._raw_at(self.order[start:stop])
        parts = []
        for piece, first in zip(self.pieces, self.offsets[:-1], strict=True):
            part = piece[max(start - first, 0) : max(stop - first, 0)]
            if len(part):
                parts.append(_to_tensor(part).to(self.device))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def block(self, start: int, stop: int) -> Tensor:
        """Embeddings (stop - start, D) in float32."""
        return self._scaled(at_least_float32(self._raw(start, stop))).float()

    def select(self, indices: Tensor) -> Tensor:
        """Embeddings (n, D) at the given indices (n,), in float64."""
        return self._scaled(self._raw_at(indices if self.order is None else self.order[indices]).double())

    def _raw_at(self, indices: Tensor) -> Tensor:
        """Embeddings (n, D) at the given indices (n,) of the pieces, without scaling."""
        if len(self.pieces) == 1:
            return _take(self.pieces[0], indices).to(self.device)
        selected = torch.empty(len(indices), self.dim, dtype=torch.float64, device=self.device)
        piece_of = np.searchsorted(self.offsets, indices.cpu().numpy(), side="right") - 1
        for piece in np.unique(piece_of):
            in_piece = torch.from_numpy(piece_of == piece).to(indices.device)
            part = _take(self.pieces[piece], indices[in_piece] - int(self.offsets[piece]))
            selected[in_piece.to(self.device)] = part.to(self.device).double()
        return selected

    def _scaled(self, embeddings: Tensor) -> Tensor:
        """Scales embeddings (n, D) to unit length, or divides them by the largest norm if `normalize` is False."""
        if self.scale is not None:
            return embeddings / self.scale
        # in float64, because the squares of large float16 numbers overflow
        norms: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True, dtype=torch.float64)
        return embeddings / norms.clamp(min=1e-12).to(embeddings.dtype)


def _to_tensor(part: Tensor | NDArray[np.floating]) -> Tensor:
    """Converts to a tensor; copies memory-mapped arrays into memory."""
    return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def _take(piece: Tensor | NDArray[np.floating], indices: Tensor) -> Tensor:
    """Selects embeddings of a piece by index (n,)."""
    if isinstance(piece, Tensor):
        return piece.index_select(0, indices.to(piece.device))
    return torch.from_numpy(np.asarray(piece[indices.cpu().numpy()]))
