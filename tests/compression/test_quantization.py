import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_recall.compression import hamming, int8_scale, pack_binary, quantize_int8, unpack_signs


def embeddings(num, dim, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def test_int8_is_within_half_a_step():
    x = embeddings(50, 7) * torch.logspace(-6, 1, 7)
    codes, scale = quantize_int8(x)
    assert ((codes * scale - x).abs() <= 0.5001 * scale).all()
    assert codes.abs().amax(0).tolist() == [127] * 7  # each dimension uses the whole range
    np.testing.assert_allclose(scale, np.abs(x.numpy()).max(0) / 127, rtol=1e-6)


def test_int8_clips_what_the_scale_does_not_cover():
    x = torch.tensor([[1.0, -3.0, 0.0]])
    codes, _ = quantize_int8(x, torch.full((3,), 1 / 127))
    assert codes.tolist() == [[127, -127, 0]]
    assert int8_scale(x)[2] == 1  # nothing is divided by 0


@given(st.integers(1, 6), st.integers(1, 40))
def test_bits_are_those_of_numpy(num, dim):
    x = embeddings(num, dim, seed=dim)
    codes = pack_binary(x)
    np.testing.assert_array_equal(codes, np.packbits(x.numpy() > 0, axis=1))
    np.testing.assert_array_equal(unpack_signs(codes, dim), np.where(x.numpy() > 0, 1, -1))


@given(st.integers(1, 70))
def test_hamming_counts_different_bits(dim):
    x, y = embeddings(3, dim), embeddings(4, dim, seed=1)
    expected = [[int(((a > 0) != (b > 0)).sum()) for b in y] for a in x]
    assert hamming(pack_binary(x), pack_binary(y)).tolist() == expected


def test_hamming_is_that_of_faiss():
    faiss = pytest.importorskip("faiss")  # an extra
    codes = pack_binary(embeddings(40, 64))
    index = faiss.IndexBinaryFlat(64)
    index.add(codes.numpy())
    distances, _ = index.search(codes[:5].numpy(), 40)
    assert hamming(codes[:5], codes).sort(1).values.tolist() == distances.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_int8(torch.zeros(0, 3)), r"shape \(N, D\), N and D at least 1, got \(0, 3\)"),
        (lambda: quantize_int8(torch.ones(2, 3), torch.ones(2)), r"shape \(3,\), one for each dimension"),
        (lambda: pack_binary(torch.ones(2, 3, dtype=torch.int8)), "must be floating point"),
        (lambda: hamming(pack_binary(torch.ones(1, 8)), pack_binary(torch.ones(1, 9))), "the same number of bytes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
