import pytest
import torch
import torch.nn.functional as F

from lightning_recall.metrics import RetrievalScores, score_similarities

LABELS = torch.arange(6) // 2


def test_scores_of_a_matrix_are_the_metrics():
    embeddings, labels = torch.randn(60, 4), torch.arange(60) // 5
    names = ("recall", "fraction_retrieved", "precision", "map@r", "r_precision", "map", "mrr")
    metric = RetrievalScores(names, (1, 7))
    metric.update(embeddings, labels)
    unit = F.normalize(embeddings, dim=1)
    similarities = (unit @ unit.T).fill_diagonal_(-torch.inf)
    found = score_similarities(similarities, labels, labels, names, (1, 7))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in metric.compute().items()}
    )
    ties = score_similarities(torch.zeros(1, 4), torch.tensor([1]), torch.tensor([1, 2, 2, 1]), ("mrr",))
    assert ties["mrr"] == pytest.approx(1 / 3)


def test_queries_without_a_relevant_item_are_refused():
    with pytest.raises(ValueError, match="No query has an item of its class"):
        score_similarities(torch.ones(1, 2), torch.tensor([3]), torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("similarities", "labels", "gallery_labels", "message"),
    [
        (torch.eye(6).tolist(), LABELS, LABELS, "similarities must be a tensor, got list"),
        (torch.eye(6).numpy(), LABELS, LABELS, "similarities must be a tensor, got ndarray"),
        (torch.eye(6), LABELS.numpy(), LABELS, "labels must be a tensor, got ndarray"),
        (torch.eye(6), LABELS[:1], LABELS, r"labels must be of shape \(6,\), one for each item, got \(1,\)"),
        (torch.eye(6), LABELS, LABELS[:5], r"gallery_labels must be of shape \(6,\), one for each item, got \(5,\)"),
        (torch.eye(6), LABELS.float(), LABELS, "labels must be integers, got torch.float32"),
        (torch.eye(6)[0], LABELS, LABELS, r"of shape \(Q, G\), without NaN, got \(6,\)"),
        (torch.eye(6).masked_fill(torch.eye(6) == 1, torch.nan), LABELS, LABELS, "without NaN"),
    ],
)
def test_matrices_that_cannot_be_scored(similarities, labels, gallery_labels, message):
    with pytest.raises(ValueError, match=message):
        score_similarities(similarities, labels, gallery_labels)
