import pytest
import torch
import torch.nn.functional as F

from lightning_recall import RecallAtKLoss, SimilarityMixup
from lightning_recall.virtual_pairs import VirtualPairs, mix_embeddings, mix_similarities

LABELS = torch.tensor([5, 2, 5, 7, 2, 5, 5])  # classes of 4, 2 and 1


def unit(n, d):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


def test_mixed_embeddings_have_the_mixed_similarities():
    embeddings = unit(7, 4)
    mixed, labels = SimilarityMixup(seed=3)(embeddings, LABELS)
    pairs = SimilarityMixup(seed=3).draw(LABELS)
    expected = mix_similarities(embeddings @ embeddings.T, pairs)
    torch.testing.assert_close(mixed @ mixed.T, expected, atol=1e-12, rtol=0)
    assert labels.tolist() == LABELS.tolist() + LABELS[pairs.first].tolist()


def test_gradient_reaches_the_real_embeddings():
    embeddings = unit(7, 4).requires_grad_()
    pairs = SimilarityMixup().draw(LABELS)
    labels = torch.cat([LABELS, LABELS[pairs.first]])
    loss = RecallAtKLoss((1, 2), rank_temperature=0.2)
    assert torch.autograd.gradcheck(lambda e: loss(mix_embeddings(e, pairs), labels), embeddings)


@pytest.mark.parametrize("queries", [None, slice(3, 12), torch.tensor([13, 0, 8, 9])])
@pytest.mark.parametrize("count_query", [False, True])
def test_a_loss_with_pairs_equals_the_loss_of_appended_items(queries, count_query):
    embeddings = unit(7, 4).requires_grad_()
    pairs = SimilarityMixup().draw(LABELS)
    loss = RecallAtKLoss((1, 2, 4), rank_temperature=0.2, count_query=count_query)
    appended = loss(mix_embeddings(embeddings, pairs), torch.cat([LABELS, LABELS[pairs.first]]), queries)
    mixed = loss(embeddings, LABELS, queries, pairs)
    torch.testing.assert_close(mixed, appended, atol=1e-14, rtol=0)
    expected, actual = (torch.autograd.grad(value, embeddings)[0] for value in (appended, mixed))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_a_loss_accepts_pairs_without_a_virtual_item():
    embeddings, labels = unit(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    none = VirtualPairs(*(torch.empty(0, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float64)))
    loss = RecallAtKLoss((1, 2))
    assert loss(embeddings, labels, pairs=none) == loss(embeddings, labels)


def test_the_number_of_virtual_items_per_class_is_bounded():
    labels = torch.arange(64) % 3
    mixup = SimilarityMixup(max_virtual_per_class=10)
    seen = set()
    for _ in range(30):
        first, second, alpha = mixup.draw(labels)
        assert torch.equal(labels[first], labels[second])
        assert labels[first].bincount().tolist() == [10, 10, 10]
        assert len({tuple(sorted(p)) for p in zip(first.tolist(), second.tolist(), strict=True)}) == 30
        assert ((alpha >= 0) & (alpha <= 1)).all()
        seen |= set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(seen) > 400  # of 651 pairs: a new choice each time
    assert len(SimilarityMixup(max_virtual_per_class=1000).draw(labels).first) == 651


def test_draws_follow_the_seed_and_continue_after_a_resume():
    def draw(mixup):
        return mixup.draw(LABELS).alpha.tolist()

    before = torch.get_rng_state()
    first, second = SimilarityMixup(seed=1), SimilarityMixup(seed=1)
    assert draw(first) == draw(second) != draw(SimilarityMixup(seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    resumed = SimilarityMixup(seed=9)
    resumed.load_state_dict(first.state_dict())
    assert draw(resumed) == draw(first) != draw(first)


def test_without_a_pair_nothing_is_appended():
    embeddings = torch.randn(3, 4)
    for mixup in (SimilarityMixup(), SimilarityMixup(max_virtual_per_class=2)):
        mixed, labels = mixup(embeddings, torch.arange(3))
        assert torch.equal(mixed, embeddings)
        assert torch.equal(labels, torch.arange(3))


def test_wrong_arguments_are_rejected():
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        SimilarityMixup()(torch.randn(7, 4), LABELS[:5])
    with pytest.raises(ValueError, match="at least 1, or None for all, got 0"):
        SimilarityMixup(max_virtual_per_class=0)
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(N,\), got torch.float32 \(2,\)"):
        SimilarityMixup()(torch.eye(2), torch.tensor([1.0, 1.0]))
    for embeddings, labels, name in ((torch.eye(2), [1, 1], "labels"), ([[1.0, 0.0]] * 2, LABELS[:2], "embeddings")):
        with pytest.raises(ValueError, match=f"{name} must be a tensor, got list: convert it with torch.as_tensor"):
            SimilarityMixup()(embeddings, labels)
    with pytest.raises(ValueError, match=r"must be floating point of shape \(N, D\), got torch.int64 \(7,\)"):
        SimilarityMixup()(LABELS, LABELS)


def test_a_changed_bound_takes_effect_in_the_next_draw():
    mixup, labels = SimilarityMixup(), torch.zeros(5, dtype=torch.int64)
    assert len(mixup.draw(labels).first) == 10
    mixup.max_virtual_per_class = 4
    assert len(mixup.draw(labels).first) == 4
    mixup.max_virtual_per_class = 0
    with pytest.raises(ValueError, match="at least 1, or None for all, got 0"):
        mixup.draw(labels)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "uint16", "uint32", "uint64"])
def test_labels_of_any_integer_type(dtype):
    labels = torch.tensor([1, 0, 1, 0, 0])
    expected = SimilarityMixup(2)(torch.eye(5), labels)
    found = SimilarityMixup(2)(torch.eye(5), labels.to(getattr(torch, dtype)))
    assert torch.equal(found[0], expected[0])
    assert found[1].tolist() == expected[1].tolist()


def test_alphas_are_uniform_from_0_to_1():
    alphas = SimilarityMixup().draw(torch.zeros(150, dtype=torch.int64)).alpha.sort().values  # 11,175 alphas
    assert (
        alphas - torch.linspace(0, 1, len(alphas))
    ).abs().max() < 0.02  # Kolmogorov-Smirnov: 0.0154 at the 1 percent level
