import pytest
import torch
import torch.nn.functional as F

from lightning_recall.losses import (
    CircleProxyLoss,
    MultipleLosses,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    RecallAtKLoss,
)


def test_is_the_cross_entropy_over_proxies():
    loss = NormalizedSoftmaxLoss(4, 3, temperature=0.1).double()
    embeddings = F.normalize(torch.randn(6, 3, dtype=torch.float64), dim=1).requires_grad_()
    labels = torch.tensor([2**40, -5, 2**40, 17, -5, 17])  # any integers
    value = loss(embeddings, labels)
    label_indices = torch.tensor([2, 0, 2, 1, 0, 1])  # ascending by label
    logits = embeddings @ F.normalize(loss.proxies.weight, dim=1).T / 0.1
    expected = F.cross_entropy(logits, label_indices)
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    assert loss(embeddings[:1], torch.tensor([3])).isfinite()  # a fourth class gets the last index
    assert loss.proxies.known_labels.tolist() == [-5, 17, 2**40, 3]
    torch.testing.assert_close(loss(embeddings, labels), value)  # the others keep their indices


def test_parts_add_up_and_have_the_same_label_indices():
    loss = NormalizedSoftmaxLoss(4, 3).double()
    embeddings, labels = F.normalize(torch.randn(6, 3).double(), dim=1), torch.tensor([4, 1, 4, 2, 1, 2])
    part = loss(embeddings, labels, queries=torch.tensor([0, 3]))
    assert loss.proxies.known_labels[:3].tolist() == [1, 2, 4]  # not only the labels of the two queries
    other = loss(embeddings, labels, queries=torch.tensor([1, 2, 4, 5]))
    torch.testing.assert_close((2 * part + 4 * other) / 6, loss(embeddings, labels), atol=1e-12, rtol=0)


def test_label_indices_are_saved_in_a_checkpoint():
    loss, other = NormalizedSoftmaxLoss(3, 2), NormalizedSoftmaxLoss(3, 2)
    loss(torch.eye(2), torch.tensor([9, 4]))
    loss(torch.eye(2), torch.tensor([9, 1]))
    other.load_state_dict(loss.state_dict())
    assert other(torch.eye(2), torch.tensor([1, 4])) == loss(torch.eye(2), torch.tensor([1, 4]))


def test_low_precision_is_computed_in_fp32():
    loss = NormalizedSoftmaxLoss(2, 4)
    embeddings = F.normalize(torch.randn(4, 4), dim=1)
    labels = torch.tensor([0, 1, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(embeddings, labels).dtype == torch.float32
        value = loss(embeddings, labels)
    assert value == loss(embeddings, labels)


def test_wrong_use_is_rejected():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        NormalizedSoftmaxLoss(0, 2)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        NormalizedSoftmaxLoss(2, 2, temperature=0)
    loss = NormalizedSoftmaxLoss(2, 3)
    with pytest.raises(ValueError, match="3 different labels, but num_classes is 2: set it to the number of training"):
        loss(torch.randn(3, 3), torch.arange(3))
    with pytest.raises(ValueError, match="dimension 4, but the proxies have embedding_dim 3"):
        loss(torch.randn(2, 4), torch.arange(2))


def test_evaluation_adds_no_label():
    embeddings = F.normalize(torch.randn(4, 3), dim=1)
    for loss in (NormalizedSoftmaxLoss(2, 3), CircleProxyLoss(2, 3), ProxyAnchorLoss(2, 3)):
        trained = loss(embeddings, torch.tensor([8, 8, 3, 3])).item()
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        total = MultipleLosses([RecallAtKLoss(), loss]).eval()
        for evaluated in (loss.eval(), total):
            with pytest.raises(ValueError, match=r"1 labels, such as 5, have no proxy\. Only labels seen in training"):
                evaluated(embeddings, torch.tensor([8, 8, 5, 5]))
        with pytest.raises(ValueError, match="2 labels, such as 5, have no proxy"):  # not the advice to set num_classes
            loss(embeddings, torch.tensor([8, 6, 5, 5]))
        assert loss(embeddings, torch.tensor([8, 8, 3, 3])).item() == trained
        assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
        with pytest.raises(ValueError, match="3 different labels, but num_classes is 2"):
            loss.train()(embeddings, torch.tensor([8, 8, 5, 5]))
        with pytest.raises(ValueError, match="1 labels, such as 0, have no proxy"):  # before any training
            type(loss)(2, 3).eval()(embeddings, torch.zeros(4, dtype=torch.int64))


def test_an_empty_batch_is_rejected():
    for loss in (NormalizedSoftmaxLoss(2, 3), CircleProxyLoss(2, 3), ProxyAnchorLoss(2, 3)):
        with pytest.raises(ValueError, match="batch is empty, or `queries` selects no items"):
            loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="batch is empty, or `queries` selects no items"):
        NormalizedSoftmaxLoss(2, 3)(torch.eye(3), torch.tensor([0, 0, 1]), queries=torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_labels_are_added_only_with_gradients(mode):
    embeddings = F.normalize(torch.randn(4, 3), dim=1)
    for loss in (NormalizedSoftmaxLoss(4, 3), CircleProxyLoss(4, 3), ProxyAnchorLoss(4, 3)):
        loss(embeddings, torch.tensor([8, 8, 3, 3]))
        with mode():
            assert loss(embeddings, torch.tensor([8, 8, 3, 3])).isfinite()
            with pytest.raises(ValueError, match=r"labels, such as 5, have no proxy.* without gradients \(no_grad\)"):
                loss(embeddings, torch.tensor([8, 8, 5, 5]))
        assert int(loss.proxies.num_known) == 2
        assert loss.proxies.known_labels.tolist() == [3, 8, 0, 0]
