"""Fewer bits a dimension: int8 with a scale for each dimension, and binary codes."""

import torch
from torch import Tensor

from lightning_recall.search.inputs import check_float_dtypes

INT8_MAX = 127


def int8_scale(embeddings: Tensor) -> Tensor:
    """The step (D,) between neighbouring int8 codes of each dimension: its largest magnitude in (N, D) over 127.

    A dimension that is 0 everywhere gets the step 1.
    """
    scale = embeddings.abs().amax(0).float() / INT8_MAX
    return scale.where(scale > 0, 1.0)


def quantize_int8(embeddings: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rounds embeddings to int8, symmetrically: embeddings = codes x scale, within half a step.

    A float query compares with codes as (query x scale) . codes, so only the gallery is rounded. Source of the scheme:
    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018 (equation 1, with zero-point 0).

    Args:
        embeddings: (N, D) floating point, N of at least 1.
        scale: (D,) step of each dimension, above 0; larger magnitudes than 127 steps are clipped. None: `int8_scale` of
            these embeddings, which clips nothing.

    Returns:
        Codes (N, D) int8 from -127 to 127, and the scale (D,) float32.

    Raises:
        ValueError: for embeddings of another shape or dtype, and for another number of scales than D.

    >>> codes, scale = quantize_int8(torch.tensor([[0.5, -0.1], [-1.0, 0.2]]))
    >>> codes
    tensor([[  64,  -64],
            [-127,  127]], dtype=torch.int8)
    """
    _check_matrix(embeddings)
    scale = int8_scale(embeddings) if scale is None else scale
    if scale.shape != embeddings.shape[1:]:
        raise ValueError(f"scale must be of shape ({embeddings.shape[1]},), one for each dimension, got {scale.shape}.")
    codes = (embeddings.float() / scale).round_().clamp_(-INT8_MAX, INT8_MAX)
    return codes.to(torch.int8), scale


def pack_binary(embeddings: Tensor) -> Tensor:
    """One bit for each dimension: whether it is above 0. Eight bits are a byte, the first is the highest.

    The layout is that of `numpy.packbits`, faiss, usearch and sentence-transformers ("ubinary").

    Args:
        embeddings: (N, D) floating point.

    Returns:
        (N, ceil(D / 8)) uint8; missing bits of the last byte are 0.

    Raises:
        ValueError: for embeddings of another shape or dtype.

    >>> pack_binary(torch.tensor([[0.5, -0.1, 0.0, 0.2]]))  # 1001 0000
    tensor([[144]], dtype=torch.uint8)
    """
    _check_matrix(embeddings)
    bits = torch.nn.functional.pad((embeddings > 0).to(torch.uint8), (0, -embeddings.shape[1] % 8))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    packed: Tensor = (bits.view(len(bits), -1, 8) << shifts).sum(2, dtype=torch.uint8)
    return packed


def unpack_signs(codes: Tensor, dim: int) -> Tensor:
    """Undoes `pack_binary` but for magnitudes: (N, dim) float16 of -1 and 1.

    Args:
        codes: (N, ceil(dim / 8)) uint8.
        dim: number of bits of an item.

    >>> unpack_signs(torch.tensor([[144]], dtype=torch.uint8), 4)
    tensor([[ 1., -1., -1.,  1.]], dtype=torch.float16)
    """
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=codes.device)
    bits = (codes[:, :, None] >> shifts & 1).flatten(1)[:, :dim]
    return bits.half() * 2 - 1


def hamming(queries: Tensor, gallery: Tensor) -> Tensor:
    """Number of different bits of binary codes.

    Args:
        queries: (Q, B) uint8, from `pack_binary`.
        gallery: (G, B) uint8.

    Returns:
        (Q, G) int64. It is computed as (8B - signs . signs) / 2, a matrix product, exact in float32.

    Raises:
        ValueError: for codes of different lengths or another dtype.

    >>> hamming(torch.tensor([[0b1001]], dtype=torch.uint8), torch.tensor([[0b1001], [0b0101]], dtype=torch.uint8))
    tensor([[0, 2]])
    """
    if queries.dtype != torch.uint8 or gallery.dtype != torch.uint8 or queries.shape[1:] != gallery.shape[1:]:
        raise ValueError(
            f"queries and gallery must be uint8 codes with the same number of bytes, got {queries.dtype} "
            f"{tuple(queries.shape)} and {gallery.dtype} {tuple(gallery.shape)}: compute them with pack_binary."
        )
    num_bits = 8 * queries.shape[1]
    products = unpack_signs(queries, num_bits).float() @ unpack_signs(gallery, num_bits).float().T
    return ((num_bits - products) / 2).round().long()


def _check_matrix(embeddings: Tensor) -> None:
    """Raises ValueError unless embeddings are floating point, of shape (N, D) with N and D of at least 1."""
    check_float_dtypes(embeddings=embeddings)
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(f"embeddings must be of shape (N, D), N and D at least 1, got {tuple(embeddings.shape)}.")
