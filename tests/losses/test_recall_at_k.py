import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_recall import RecallAtK
from lightning_recall.losses import RecallAtKLoss, heaviside, parts, query_blocks


def loss_by_loops(embeddings, labels, ks, k_temperature, rank_temperature, count_query):
    """The paper's equations, one comparison at a time."""
    s = embeddings @ embeddings.T
    n = len(labels)
    recalls = []
    for q in range(n):
        positives = [x for x in range(n) if x != q and labels[x] == labels[q]]
        if not positives:
            continue
        ranks = []
        for x in positives:
            others = [z for z in range(n) if z != x and (count_query or z != q)]
            ranks.append(1 + sum(torch.sigmoid((s[q, z] - s[q, x]) / rank_temperature) for z in others))
        for k in ks:
            found = sum(torch.sigmoid((k - rank) / k_temperature) for rank in ranks)
            recalls.append(torch.clamp(found, max=k) / min(k, len(positives)))
    return 1 - torch.stack(recalls).mean()


def unit(n, d, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, dtype=dtype), dim=1)


UNEVEN = torch.tensor([3, 1, 1, 3, 3, 0, 1, 9, 3, 0, 3, 4, 4])  # 9 is alone in its class


@pytest.mark.parametrize("count_query", [False, True])
@pytest.mark.parametrize(("block", "part"), [(1, 1), (60, 1), (60, 70), (2**22, 60), (2**22, 2**20)])
@pytest.mark.parametrize(("stored", "spread"), [(1, 36.0), (16, 36.0), (2**22, -1.0)])
def test_value_and_gradient_equal_the_loops(count_query, block, part, stored, spread, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_QUERIES", 1)
    monkeypatch.setattr(parts, "BLOCK_ELEMENTS", block)  # one query per block, four, or all
    monkeypatch.setattr(parts, "PART_ELEMENTS", part)
    monkeypatch.setattr(query_blocks, "STORED_ELEMENTS", stored)
    monkeypatch.setattr(heaviside, "MAX_SPREAD", spread)
    embeddings = unit(len(UNEVEN), 5).requires_grad_()
    settings = {"ks": (1, 2, 4, 30), "k_temperature": 1.0, "rank_temperature": 0.05, "count_query": count_query}

    expected = loss_by_loops(embeddings, UNEVEN, **settings)
    actual = RecallAtKLoss(**settings)(embeddings, UNEVEN)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)

    (expected_gradient,) = torch.autograd.grad(expected, embeddings)
    (actual_gradient,) = torch.autograd.grad(actual, embeddings)
    assert expected_gradient.abs().max() > 1e-3
    torch.testing.assert_close(actual_gradient, expected_gradient, atol=1e-12, rtol=0)


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=6, max_size=12), seed=st.integers(0, 999), count=st.booleans())
def test_any_class_sizes_and_duplicates_equal_the_loops(labels, seed, count):
    torch.manual_seed(seed)
    labels = torch.tensor(labels)  # six items of five classes: two labels are equal
    embeddings = unit(len(labels), 3)
    embeddings[1] = embeddings[0]  # a tie
    expected = loss_by_loops(embeddings, labels, (1, 2, 4), 1.0, 0.1, count)
    actual = RecallAtKLoss((1, 2, 4), 1.0, 0.1, count)(embeddings, labels)
    assert actual.item() == pytest.approx(expected.item(), abs=1e-10)


def test_recall_is_clipped_at_k():
    embeddings = torch.cat([torch.ones(17, 1), -torch.ones(17, 1)]).double()  # 17 positives before k = 9
    labels = torch.cat([torch.zeros(17), torch.arange(1, 18)]).long()
    expected = loss_by_loops(embeddings, labels, (9,), 1.0, 0.01, count_query=False)
    assert RecallAtKLoss((9,))(embeddings, labels).item() == pytest.approx(expected.item(), abs=1e-12)
    tight = RecallAtKLoss((9,), k_temperature=10.0)  # every hit is slightly above 0.5, so 17 hits exceed 9
    expected = loss_by_loops(embeddings, labels, (9,), 10.0, 0.01, count_query=False)
    assert tight(embeddings, labels).item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_case_computed_by_hand():
    # Query 0 at angle 0: its positive is at 60 degrees (s = 0.5), negatives are at 0 (s = 1) and 90 degrees (s = 0).
    angles = torch.tensor([0.0, 60.0, 0.0, 90.0], dtype=torch.float64).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 0, 1, 2])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    rank_0 = 1 + sigmoid((1 - 0.5) / 0.5) + sigmoid((0 - 0.5) / 0.5)  # of item 1 for query 0
    rank_1 = 1 + sigmoid((0.5 - 0.5) / 0.5) + sigmoid((math.sqrt(0.75) - 0.5) / 0.5)  # of item 0 for query 1
    expected = 1 - (sigmoid(1 - rank_0) + sigmoid(1 - rank_1)) / 2
    loss = RecallAtKLoss(ks=(1,), rank_temperature=0.5)
    assert loss(embeddings, labels).item() == pytest.approx(expected, abs=1e-12)


def test_gradcheck():
    embeddings = unit(8, 4).requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda e: RecallAtKLoss((1, 2), 1.0, 0.2)(e, labels), embeddings)


def test_order_does_not_matter():
    embeddings, loss = unit(len(UNEVEN), 5), RecallAtKLoss()
    shuffle = torch.randperm(len(UNEVEN))
    torch.testing.assert_close(loss(embeddings[shuffle], UNEVEN[shuffle]), loss(embeddings, UNEVEN))


def test_the_limit_is_one_minus_exact_recall():
    embeddings = unit(40, 4)
    labels = torch.arange(40) % 9
    ks = (1, 2, 4, 8, 16)
    s = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)
    relevant = labels[s.argsort(1, descending=True)[:, :-1]] == labels[:, None]  # (40, 39), without the query
    hits = relevant.cumsum(1)
    exact = [hits[:, k - 1].clamp(max=k) / hits[:, -1].clamp(max=k) for k in ks]
    # At rank = k the sigmoid is 0.5 at any temperature: the item at rank k counts as half a hit.
    halves = [relevant[:, k - 1] * 0.5 / hits[:, -1].clamp(max=k) for k in ks]
    expected = 1 - (torch.stack(exact) - torch.stack(halves)).mean()
    loss = RecallAtKLoss(ks, k_temperature=1e-3, rank_temperature=1e-7)(embeddings, labels)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_parts_of_the_queries_add_up_to_the_whole():
    embeddings, loss = unit(len(UNEVEN), 5).requires_grad_(), RecallAtKLoss((1, 2), rank_temperature=0.1)
    whole = loss(embeddings, UNEVEN)
    (gradient,) = torch.autograd.grad(whole, embeddings)
    has_positive = (UNEVEN[:, None] == UNEVEN).sum(1) > 1
    parts = [slice(0, 4), torch.tensor([12, 4, 7]), torch.tensor([5, 6, 8, 9, 10, 11])]
    weights = [has_positive[part].double().sum() / has_positive.sum() for part in parts]
    summed = sum(w * loss(embeddings, UNEVEN, queries=part) for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(summed, whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(summed, embeddings)[0], gradient, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="No query has a positive"):
        loss(embeddings, UNEVEN, queries=torch.tensor([7]))


def test_diagnostics_are_the_metric_and_the_fraction_with_gradient():
    embeddings, labels = unit(60, 4), torch.arange(60) // 5
    embeddings[1] = embeddings[7]  # a tie with a negative
    loss = RecallAtKLoss(ks=(1, 4))
    for count_query in (False, True):
        loss.count_query = count_query
        loss(embeddings, labels)
        metric = RecallAtK(ks=(1, 4))
        metric.update(embeddings, labels)
        assert loss.diagnostics == metric.compute()
    loss(embeddings.requires_grad_(), labels).backward()
    assert 0 < loss.diagnostics["active_positives"] <= 1
    far = RecallAtKLoss(ks=(1,))
    far(torch.cat([-embeddings[:1], embeddings[:1].repeat(58, 1), embeddings[:1]]).detach().requires_grad_(), labels)
    assert far.diagnostics["active_positives"] == 0


def training(norm):
    """First and last loss of ten training steps of an untrained network."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), *([nn.BatchNorm1d(8)] if norm else [])]
    network, loss = nn.Sequential(*layers), RecallAtKLoss()
    network[2].bias.data.fill_(40.0)  # nearly equal embeddings, as those of deep untrained networks
    labels = torch.arange(256) // 4
    images = torch.randn(64, 16)[labels] + 0.3 * torch.randn(256, 16)
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=0.01), []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(loss(F.normalize(network(images), dim=1), labels))
        losses[-1].backward()
        optimizer.step()
    return losses[0].item(), losses[-1].item()


def test_a_vanishing_gradient_causes_one_warning_and_batch_norm_helps():
    with pytest.warns(UserWarning, match=r"is .*e-0., below 2 \* rank_temperature = 0.02.*BatchNorm") as warned:
        first, last = training(norm=False)
    assert len(warned) == 1
    assert first == last == 1
    first, last = training(norm=True)  # warnings are errors
    assert last < first - 0.05


@pytest.mark.parametrize(
    "embeddings",
    [
        torch.zeros(6, 4),
        torch.eye(6) * 1e4,
        -torch.ones(6, 4) * 1e4,
        torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0], [1.0]]),
    ],
)
@pytest.mark.filterwarnings("ignore:The gradient of this batch vanishes", "ignore:RecallAtKLoss expects unit-norm")
def test_extreme_embeddings_have_finite_gradients(embeddings):
    embeddings.requires_grad_()
    loss = RecallAtKLoss()(embeddings, torch.arange(6) // 3)
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()


def test_a_batch_of_two_images():
    embeddings = torch.eye(2).requires_grad_()
    loss = RecallAtKLoss()(embeddings, torch.tensor([3, 3]))
    loss.backward()
    expected = 1 - sum(min(1 / (1 + math.exp(1 - k)), k) for k in (1, 2, 4, 8, 16)) / 5  # both at rank 1
    assert loss.item() == pytest.approx(expected)
    assert embeddings.grad.abs().max() == 0


def test_results_are_deterministic():
    embeddings, labels = unit(300, 16, torch.float32), torch.arange(300) // 4
    results = []
    for _ in range(2):
        leaf = embeddings.clone().requires_grad_()
        RecallAtKLoss()(leaf, labels).backward()
        results.append(leaf.grad)
    assert torch.equal(*results)


def test_half_precision_is_computed_in_float32():
    embeddings = unit(64, 16, torch.float32)
    labels = torch.arange(64) // 4
    loss = RecallAtKLoss()
    for dtype in (torch.bfloat16, torch.float16):
        rounded = embeddings.to(dtype).requires_grad_()
        value = loss(rounded, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(rounded.float(), labels), rtol=0, atol=0)
        value.backward()
        assert rounded.grad.dtype == dtype
        assert rounded.grad.isfinite().all()


def test_autocast_does_not_change_the_loss():
    embeddings = unit(64, 16, torch.float32)
    labels = torch.arange(64) // 4
    expected = RecallAtKLoss()(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(RecallAtKLoss()(embeddings, labels), expected)


def test_a_thousand_images():
    embeddings = unit(1024, 512, torch.float32).requires_grad_()
    RecallAtKLoss()(embeddings, torch.arange(1024) // 4).backward()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("ks", [(), (0,), (1, -2), (1.5,)])
def test_wrong_ks_are_rejected(ks):
    with pytest.raises(ValueError, match="ks must be one or more positive integers"):
        RecallAtKLoss(ks=ks)


@pytest.mark.parametrize("name", ["k_temperature", "rank_temperature"])
def test_a_temperature_of_zero_is_rejected(name):
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got 0"):
        RecallAtKLoss(**{name: 0})


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.ones(4, 2), torch.tensor([0, 0, 1]), r"shape \(4,\), got shape \(3,\)"),
        (torch.ones(4), torch.tensor([0, 0, 1, 1]), r"shape \(N, D\)"),
        (torch.ones(4, 2, dtype=torch.int64), torch.tensor([0, 0, 1, 1]), "floating point"),
        (torch.ones(4, 2), torch.tensor([0.0, 0.0, 1.0, 1.0]), "labels must be integers"),
        (torch.ones(4, 2), torch.zeros(4, dtype=torch.int64, device="meta"), "labels are on meta, embeddings on cpu"),
        (torch.ones(4, 2), torch.tensor([0, 1, 2, 3]), "No query has a positive"),
        (torch.full((4, 2), float("nan")), torch.tensor([0, 0, 1, 1]), "NaN"),
        (torch.full((4, 2), float("inf")), torch.tensor([0, 0, 1, 1]), "infinity"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), "No query has a positive"),
    ],
)
def test_wrong_batches_are_rejected(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        RecallAtKLoss()(embeddings, labels)
