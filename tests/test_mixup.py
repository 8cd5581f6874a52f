import pytest
import torch
import torch.nn.functional as F

from lightning_recall import SimilarityMixup
from lightning_recall.mixup import same_class_pairs

LABELS = torch.tensor([5, 2, 5, 7, 2, 5, 5])  # classes of 4, 2 and 1


def test_every_pair_of_a_class_once():
    first, second = same_class_pairs(LABELS)
    pairs = {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    expected = {(i, j) for i in range(7) for j in range(i + 1, 7) if LABELS[i] == LABELS[j]}
    assert pairs == expected
    assert len(first) == len(expected) == 7


def test_equals_mixing_the_similarities():
    embeddings = F.normalize(torch.randn(7, 4, dtype=torch.float64), dim=1)
    mixed, labels = SimilarityMixup(torch.Generator().manual_seed(3))(embeddings, LABELS)
    first, second = same_class_pairs(LABELS)
    alpha = torch.rand((len(first), 1), dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    real = embeddings @ embeddings.T
    to_real = alpha * real[first] + (1 - alpha) * real[second]  # (M, N): s_vw = alpha s_xw + (1 - alpha) s_zw
    to_virtual = alpha.T * to_real[:, first] + (1 - alpha.T) * to_real[:, second]  # (M, M), bilinear
    expected = torch.cat([torch.cat([real, to_real.T], 1), torch.cat([to_real, to_virtual], 1)])
    torch.testing.assert_close(mixed @ mixed.T, expected, atol=1e-12, rtol=0)
    assert labels.tolist() == LABELS.tolist() + LABELS[first].tolist()


def test_gradient_reaches_the_real_embeddings():
    embeddings = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)

    def mix(e):
        return SimilarityMixup(torch.Generator().manual_seed(0))(e, LABELS)[0]

    assert torch.autograd.gradcheck(mix, embeddings)


def test_without_a_pair_nothing_is_added():
    embeddings = torch.randn(3, 4)
    mixed, labels = SimilarityMixup()(embeddings, torch.arange(3))
    assert torch.equal(mixed, embeddings)
    assert torch.equal(labels, torch.arange(3))


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        SimilarityMixup()(torch.randn(7, 4), LABELS[:5])
