import pytest
import torch
import torch.nn.functional as F

from lightning_recall import losses
from lightning_recall.losses import (
    CircleLoss,
    ContrastiveLoss,
    CrossBatchMemory,
    MultipleLosses,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    RecallAtKLoss,
    SmoothAPLoss,
    SupAPLoss,
    SupRecallAtKLoss,
)


def unit(n, d=4):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


def test_value_and_gradient_equal_the_weighted_sum():
    parts = [RecallAtKLoss(ks=(1, 2), rank_temperature=0.1), NormalizedSoftmaxLoss(3, 4).double()]
    loss = MultipleLosses(parts, [0.7, 0.3])
    embeddings, labels = unit(12).requires_grad_(), torch.arange(12) // 4
    value, expected = loss(embeddings, labels), 0.7 * parts[0](embeddings, labels) + 0.3 * parts[1](embeddings, labels)
    torch.testing.assert_close(value, expected)
    leaves = (embeddings, parts[1].proxies.weight)
    for ours, theirs in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert loss.diagnostics.keys() == {"recall@1", "recall@2", "active_positives", "loss_0", "loss_1"}
    assert {name for name, _ in loss.named_parameters()} == {"losses.1.proxies.weight"}


def test_parts_of_the_queries_add_up_also_with_virtual_items():
    parts = [RecallAtKLoss(ks=(1, 2), rank_temperature=0.1), NormalizedSoftmaxLoss(3, 4).double()]
    loss = MultipleLosses(parts)
    embeddings, labels = unit(12), torch.arange(12) // 4
    pairs = (torch.tensor([0, 5]), torch.tensor([1, 6]), torch.tensor([0.3, 0.6]))
    for options, count in (({}, 12), ({"pairs": pairs}, 14)):
        whole = loss(embeddings, labels, **options)
        parts_of_queries = [torch.arange(count)[rank::3] for rank in range(3)]
        total = sum(loss(embeddings, labels, queries=part, **options) * len(part) for part in parts_of_queries) / count
        torch.testing.assert_close(total, whole, atol=1e-6, rtol=0)


def test_wrong_sums_are_rejected():
    for given, weights in (([], None), ([RecallAtKLoss()], [1, 2]), ([RecallAtKLoss()], [-1])):
        with pytest.raises(ValueError, match="a non-negative weight for each"):
            MultipleLosses(given, weights)


MEMORY_LOSSES = [
    RecallAtKLoss(ks=(1, 2), rank_temperature=0.1),
    SmoothAPLoss(0.1),
    SupAPLoss(0.1, delta=0.3),
    SupRecallAtKLoss(ks=(1, 2), rank_temperature=0.1, delta=0.3),
    CircleLoss(0.3, 8),
    ContrastiveLoss(0.8, 0.1),
    MultipleLosses([RecallAtKLoss(ks=(1,), rank_temperature=0.1), ContrastiveLoss()]),
]


@pytest.mark.parametrize("loss", MEMORY_LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("with_pairs", [False, True])
def test_the_gallery_contains_recent_batches(loss, with_pairs):
    memory = CrossBatchMemory(loss, size=20, embedding_dim=4).double()
    batches = [(unit(8).requires_grad_(), torch.arange(8) // 2 + step) for step in range(4)]
    pairs = (torch.tensor([0, 5]), torch.tensor([1, 4]), torch.tensor([0.3, 0.6]).double()) if with_pairs else None
    stored = []
    for embeddings, labels in batches:
        value = memory(embeddings, labels, pairs=pairs)
        last = stored[-20:]
        gallery = torch.cat([embeddings, *(row[None] for row, _ in last)])
        all_labels = torch.cat([labels, *(label[None] for _, label in last)])
        queries = torch.arange(8)
        if pairs is not None:  # the same items, appended
            first, second, alpha = pairs
            mixed = alpha[:, None] * embeddings[first] + (1 - alpha[:, None]) * embeddings[second]
            gallery, all_labels = torch.cat([gallery, mixed]), torch.cat([all_labels, labels[first]])
            queries = torch.cat([queries, 8 + len(last) + torch.arange(2)])
        expected = loss(gallery, all_labels, queries=queries)
        torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
        gradients = [torch.autograd.grad(one, embeddings)[0] for one in (value, expected)]
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)
        stored += [(row.detach(), label) for row, label in zip(embeddings, labels, strict=True)]
    assert int(memory.num_stored) == 32


def test_every_loss_that_supports_queries_is_tested():
    takes_queries = {type(loss).__name__ for loss in MEMORY_LOSSES}
    takes_queries |= {
        "CrossBatchMemory",
        "NormalizedSoftmaxLoss",
        "CircleProxyLoss",
    }  # proxy losses have no gallery
    assert takes_queries | {"UniLoss", "ProxyAnchorLoss"} == set(losses.__all__)


def test_the_memory_starts_late_is_restored_and_is_off_in_evaluation():
    loss = RecallAtKLoss(ks=(1,), rank_temperature=0.1)
    embeddings, labels = unit(8), torch.arange(8) // 2
    memory = CrossBatchMemory(loss, 10, 4, start_after=2).double()
    for _ in range(2):
        assert memory(embeddings, labels) == loss(embeddings, labels)
    assert memory(embeddings, labels) != loss(embeddings, labels)
    other = CrossBatchMemory(loss, 10, 4, start_after=2).double()
    other.load_state_dict(memory.state_dict())
    assert other(embeddings, labels) == memory(embeddings, labels)
    assert memory.eval()(embeddings, labels) == loss(embeddings, labels)
    assert int(memory.num_stored) == 32
    assert memory.diagnostics["recall@1"] == loss.diagnostics["recall@1"]


def test_a_batch_larger_than_the_memory_stores_its_end():
    memory = CrossBatchMemory(RecallAtKLoss(ks=(1,)), 3, 4).double()
    embeddings = unit(8)
    memory(embeddings, torch.arange(8) // 2)
    assert {tuple(row.tolist()) for row in memory.memory} == {tuple(row.tolist()) for row in embeddings[-3:]}


def test_wrong_memories_are_rejected():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        CrossBatchMemory(RecallAtKLoss(), 0, 4)
    with pytest.raises(ValueError, match="CosineEmbeddingLoss does not support `queries`"):
        CrossBatchMemory(torch.nn.CosineEmbeddingLoss(), 5, 4)
    with pytest.raises(ValueError, match="dimension 3, but the memory has embedding_dim 4"):
        CrossBatchMemory(RecallAtKLoss(), 5, 4)(torch.ones(2, 3), torch.zeros(2).long())


def test_a_memory_rejects_a_sum_with_a_loss_that_cannot_separate_the_batch():
    proxies = ProxyAnchorLoss(12, 4)
    with pytest.raises(ValueError, match=r"ProxyAnchorLoss does not support `queries`.*MultipleLosses\(\[CrossBatch"):
        CrossBatchMemory(MultipleLosses([RecallAtKLoss(), proxies]), 5, 4)
    beside = MultipleLosses([CrossBatchMemory(RecallAtKLoss(), 5, 4), proxies])
    embeddings, labels = unit(8).float(), torch.arange(8) // 2
    beside(embeddings, labels)
    beside(embeddings.flip(0), labels.flip(0))
    assert beside.diagnostics["loss_1"] == proxies(embeddings.flip(0), labels.flip(0))


def test_flags_of_a_combination_follow_its_losses():
    """A sum supports `pairs` if one of its losses does; otherwise the module appends the virtual items."""
    assert MultipleLosses([RecallAtKLoss(), NormalizedSoftmaxLoss(3, 4)]).accepts_virtual
    proxies = MultipleLosses([NormalizedSoftmaxLoss(3, 4), torch.nn.Module()])
    assert not proxies.accepts_virtual
    assert proxies.shares_queries
    assert proxies.counts_singletons
    assert not MultipleLosses([RecallAtKLoss()]).counts_singletons
    assert not CrossBatchMemory(NormalizedSoftmaxLoss(3, 4), 5, 4).accepts_virtual
    assert CrossBatchMemory(RecallAtKLoss(), 5, 4).counts_singletons


def test_a_loss_that_is_added_later_takes_effect():
    total = MultipleLosses([NormalizedSoftmaxLoss(3, 4)])
    total.losses.append(RecallAtKLoss())
    total.weights.append(1.0)
    assert total.accepts_virtual


def test_the_first_loss_wins_where_diagnostics_collide():
    first, second = ContrastiveLoss(), SmoothAPLoss()
    total = MultipleLosses([first, second])
    second.register_forward_hook(lambda loss, *_: loss.diagnostics.update({"recall@1": torch.tensor(-5.0)}))
    total(unit(8), torch.arange(8) // 2)
    assert total.diagnostics["recall@1"] == first.diagnostics["recall@1"] != -5


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy])
@pytest.mark.parametrize("name", ["embeddings", "labels"])
def test_arguments_that_are_not_tensors_are_rejected(convert, name):
    batch = {"embeddings": torch.eye(4), "labels": torch.tensor([0, 0, 1, 1])}
    batch[name] = convert(batch[name])
    for loss in (MultipleLosses([RecallAtKLoss((1,))]), CrossBatchMemory(RecallAtKLoss((1,)), 4, 4)):
        with pytest.raises(ValueError, match=f"{name} must be a tensor, got (list|ndarray): convert it with torch"):
            loss(**batch)
