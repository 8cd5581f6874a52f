import pytest
import torch
import torch.nn.functional as F

from lightning_recall.losses import ContrastiveLoss


def test_value_and_gradient_equal_the_loops():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    embeddings = F.normalize(torch.randn(6, 3, dtype=torch.float64), dim=1).requires_grad_()
    s = embeddings @ embeddings.T
    values = []
    for q in range(5):
        right = [torch.relu(0.8 - s[q, x]) for x in range(6) if x != q and labels[x] == labels[q]]
        wrong = [s[q, x] - 0.1 for x in range(6) if labels[x] != labels[q] and s[q, x] > 0.1]
        values.append(sum(right) / len(right) + sum(wrong) / max(len(wrong), 1))
    expected = sum(values) / 5
    value = ContrastiveLoss(0.8, 0.1)(embeddings, labels)
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(one, embeddings)[0] for one in (value, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dim", "margin"), [(2, 0.998), (40, 0.2)])
def test_queries_without_a_violating_negative_equal_the_loops(dim, margin):
    """A small D takes the pairs of such queries alone, a large D multiplies whole rows."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 1, 2, 2, 3, 3, 4])
    embeddings = F.normalize(torch.randn(12, dim, dtype=torch.float64), dim=1).requires_grad_()
    s = embeddings @ embeddings.T
    values, with_violation = [], 0
    for q in range(11):
        right = [torch.relu(1.0 - s[q, x]) for x in range(12) if x != q and labels[x] == labels[q]]
        wrong = [s[q, x] - margin for x in range(12) if labels[x] != labels[q] and s[q, x] > margin]
        with_violation += bool(wrong)
        values.append(sum(right) / len(right) + sum(wrong) / max(len(wrong), 1))
    assert 0 < with_violation < 11
    expected = sum(values) / 11
    value = ContrastiveLoss(1.0, margin)(embeddings, labels)
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(one, embeddings)[0] for one in (value, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize("margins", [(0.5, 0.5), (1.1, 0.5), (0.5, -1.2)])
def test_wrong_margins_are_rejected(margins):
    with pytest.raises(ValueError, match="Margins must be from -1 to 1"):
        ContrastiveLoss(*margins)
