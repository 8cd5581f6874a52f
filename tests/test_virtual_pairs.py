import pytest
import torch

from lightning_recall.virtual_pairs import (
    VirtualPairs,
    append_virtual_labels,
    mix_embeddings,
    mix_similarities,
    same_class_pairs,
)

LABELS = torch.tensor([5, 2, 5, 7, 2, 5, 5])  # classes of 4, 2 and 1


def test_every_pair_of_a_class_once():
    first, second = same_class_pairs(LABELS)
    pairs = {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    expected = {(i, j) for i in range(7) for j in range(i + 1, 7) if LABELS[i] == LABELS[j]}
    assert pairs == expected
    assert len(first) == len(expected) == 7


def test_mixed_similarities_are_the_papers():
    real = torch.randn(7, 7, dtype=torch.float64)
    first, second = same_class_pairs(LABELS)
    alpha = torch.rand(7, dtype=torch.float64)
    mixed = mix_similarities(real, VirtualPairs(first, second, alpha))
    for v in range(7):
        x, z, a = first[v], second[v], alpha[v]
        for w in range(7):
            assert mixed[7 + v, w] == pytest.approx((a * real[x, w] + (1 - a) * real[z, w]).item())
            xw, zw, b = first[w], second[w], alpha[w]
            expected = a * b * real[x, xw] + a * (1 - b) * real[x, zw] + (1 - a) * b * real[z, xw]
            assert mixed[7 + v, 7 + w] == pytest.approx((expected + (1 - a) * (1 - b) * real[z, zw]).item())
    assert torch.equal(mixed[:7, :7], real)


def test_labels_without_a_pair_give_no_pairs():
    for labels in (torch.arange(3), torch.tensor([], dtype=torch.int64)):
        first, second = same_class_pairs(labels)
        assert first.tolist() == second.tolist() == []


def test_virtual_embeddings_are_appended_in_the_order_of_the_pairs():
    embeddings = torch.eye(3, dtype=torch.float64)
    pairs = VirtualPairs(torch.tensor([0, 2]), torch.tensor([1, 1]), torch.tensor([0.25, 1.0]))
    mixed = mix_embeddings(embeddings, pairs)
    assert mixed.dtype == torch.float64
    assert mixed[:3].equal(embeddings)
    assert mixed[3:].tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]


def test_virtual_items_have_the_label_of_their_pair():
    first, second = same_class_pairs(LABELS)
    labels = append_virtual_labels(LABELS, VirtualPairs(first, second, torch.rand(7)))
    assert labels[:7].equal(LABELS)
    assert labels[7:].equal(LABELS[second])
    assert append_virtual_labels(LABELS, None) is LABELS
