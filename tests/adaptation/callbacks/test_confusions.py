from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score

from lightning_recall.adaptation.callbacks.confusions import (
    class_accuracies,
    confusions_of,
    mean_class_accuracy,
    most_confused,
    overall_accuracy,
)


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predictions = rng.integers(0, 6, 200), rng.integers(0, 6, 200)
    matrix = torch.from_numpy(confusion_matrix(truth, predictions))
    assert class_accuracies(matrix).numpy() == pytest.approx(recall_score(truth, predictions, average=None))
    assert mean_class_accuracy(matrix) == pytest.approx(balanced_accuracy_score(truth, predictions))
    assert overall_accuracy(matrix) == pytest.approx(accuracy_score(truth, predictions))
    for label, confused in enumerate(most_confused(matrix)):
        wrong = predictions[(truth == label) & (predictions != label)]
        assert confused.label == np.bincount(wrong).argmax()
        assert confused.fraction == np.bincount(wrong).max() / (truth == label).sum()


def test_classes_without_images_do_not_count():
    matrix = torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 2]])
    assert class_accuracies(matrix).isnan().tolist() == [False, True, False]
    assert mean_class_accuracy(matrix) == 0.875
    assert most_confused(matrix)[1:] == [None, None]


def test_domains_without_labels_are_left_out():
    module = SimpleNamespace(confusions={"source": torch.eye(2).long(), "target": torch.zeros(2, 2).long()})
    assert list(confusions_of(module, "X")) == ["source"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (SimpleNamespace(), r"DomainTable needs SimpleNamespace.confusions: set it to .* or remove DomainTable\."),
        (SimpleNamespace(confusions={"a": torch.ones(2, 3)}), r"square matrices .* got a tensor \(2, 3\) for 'a'\."),
        (SimpleNamespace(confusions={"a": [[1]]}), "square matrices .* got a list"),
    ],
)
def test_modules_without_matrices_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        confusions_of(module, "DomainTable")
