import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from torch import multiprocessing

from lightning_recall.adaptation.scores import ACCURACIES, VALIDATORS, DomainScores, triangular_factor

K = 6
KINDS = {"soft": 1.0, "confident": 12.0, "one-hot": 1000.0, "one class": None, "few images": 1.0, "missing class": 30.0}


def draw(kind, dtype=torch.float32):
    """Logits (N, K) and labels (N,), a quarter without label."""
    generator = torch.Generator().manual_seed(3)
    count = 4 if kind == "few images" else 61
    logits = torch.randn(count, K, generator=generator)
    if kind == "one class":
        logits[:, 2] += 50
    else:
        logits *= KINDS[kind]
    if kind == "missing class":
        logits[:, 1] = -1000
    labels = torch.randint(K - 1, (count,), generator=generator)  # the last class has no image
    labels[::4] = -1
    return logits.to(dtype), labels


def scores_of(logits, labels, sizes):
    metric = DomainScores(K)
    for rows, of_rows in zip(logits.split(sizes), labels.split(sizes), strict=True):
        metric.update(rows, of_rows)
    return metric.compute()


def on_all_rows(logits, labels):
    """The scores of all rows at once, by NumPy and scikit-learn."""
    known = labels != -1
    y, p = labels[known].numpy(), logits.argmax(1)[known].numpy()
    softmax = logits.double().softmax(1)
    rows = softmax.numpy()
    log = np.log(np.where(rows > 0, rows, 1))
    mean_entropy = -(rows * log).sum(1).mean()
    mean = rows.mean(0)
    diversity = -sum(value * math.log(value) for value in mean if value > 0)
    present = np.unique(y)
    matrix = confusion_matrix(y, p, labels=list(range(K)))
    return {
        "confusion": matrix,
        "accuracy": accuracy_score(y, p),
        "mean_class_accuracy": np.mean([(p[y == k] == k).mean() for k in present]),
        "loss": F.cross_entropy(logits[known].double(), labels[known]).item(),
        "negative_entropy": -mean_entropy,
        "information_maximization": diversity - mean_entropy,
        "bnm": torch.linalg.matrix_norm(softmax, "nuc").item() / len(rows),
    }


def assert_scores(result, expected):
    assert set(result) == set(expected)
    assert np.array_equal(result["confusion"].numpy(), expected["confusion"])
    for name in set(expected) - {"confusion"}:
        assert result[name].item() == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [61, 1, 7])
def test_equal_to_all_rows_at_once(kind, sizes):
    logits, labels = draw(kind)
    assert_scores(scores_of(logits, labels, sizes), on_all_rows(logits, labels))
    assert {*ACCURACIES, *VALIDATORS, "loss", "confusion"} == set(on_all_rows(logits, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    logits, labels = draw("soft", dtype)
    assert_scores(scores_of(logits, labels, 9), on_all_rows(logits, labels))


def test_the_mean_over_classes_is_sklearns():
    logits, labels = draw("soft")
    labels[1], logits[1, 5] = 5, 9  # every class has an image
    known = labels != -1
    expected = balanced_accuracy_score(labels[known], logits.argmax(1)[known])
    assert scores_of(logits, labels, 10)["mean_class_accuracy"].item() == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    """Two images of class 0, one predicted as class 1; one of class 1; and certain predictions."""
    metric = DomainScores(2)
    metric.update(torch.tensor([[1e4, 0], [0, 1e4], [0, 1e4], [1e4, 0]]), torch.tensor([0, 0, 1, -1]))
    result = metric.compute()
    assert result["confusion"].tolist() == [[1, 1], [0, 1]]
    assert result["accuracy"].item() == pytest.approx(2 / 3)
    assert result["mean_class_accuracy"].item() == 0.75
    assert result["negative_entropy"].item() == 0
    assert result["information_maximization"].item() == pytest.approx(math.log(2))
    assert result["bnm"].item() == pytest.approx(math.sqrt(2 / 4))  # the largest value, sqrt(K / N)


@pytest.mark.parametrize("kind", ["soft", "one class", "one-hot"])
def test_the_squared_matrix_would_lose_digits(kind):
    """Of a matrix of rank one, the eigenvalues of P^T P give the singular values with half of the digits."""
    softmax = draw(kind)[0].double().softmax(1)
    singular = torch.linalg.svdvals(softmax)
    torch.testing.assert_close(torch.linalg.svdvals(triangular_factor(softmax)), singular, rtol=0, atol=1e-13)


def test_pytorch_adapts_convention():
    """Its entropy and BNM losses, written out, with the sign of a score; its IM adds 1e-6 in the logarithm."""
    logits, labels = draw("soft")
    result = scores_of(logits, labels, 20)
    softmax = logits.softmax(1)
    entropy = -(softmax * logits.log_softmax(1)).sum(1).mean()
    mean = softmax.mean(0)
    assert result["negative_entropy"].item() == pytest.approx(-entropy.item(), abs=1e-6)
    assert result["bnm"].item() == pytest.approx((torch.linalg.norm(softmax, "nuc") / len(softmax)).item(), abs=1e-6)
    im = -(mean * (mean + 1e-6).log()).sum() - entropy
    assert result["information_maximization"].item() == pytest.approx(im.item(), abs=1e-5)


def test_without_labels_there_are_only_validators():
    logits, labels = draw("soft")
    result = scores_of(logits, torch.full_like(labels, -1), 8)
    assert set(result) == {*VALIDATORS, "confusion"}
    assert result["confusion"].sum() == 0
    known = scores_of(logits, labels, 8)
    assert all(torch.equal(result[name], known[name]) for name in VALIDATORS)
    metric = DomainScores(K)
    metric.update(logits[:0], labels[:0])
    assert metric.compute() == {}


def test_an_empty_batch_changes_nothing():
    logits, labels = draw("soft")
    metric = DomainScores(K)
    metric.update(logits, labels)
    before = metric.compute()
    metric.update(logits[:0], labels[:0])
    after = metric.compute()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-15)


def test_a_diverged_network_has_no_validators():
    logits, labels = draw("soft")
    logits[3] = torch.nan
    result = scores_of(logits, labels, 10)
    assert all(result[name].isnan() for name in VALIDATORS)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 5), torch.zeros(2).long(), r"\(B, 6\) and labels \(B,\), got \(2, 5\) and \(2,\)"),
        (torch.zeros(2, K), torch.zeros(3).long(), r"got \(2, 6\) and \(3,\)"),
        (torch.zeros(2, K), torch.tensor([0, 6]), "from 0 to 5, or -1 .* got labels from 0 to 6"),
        (torch.zeros(2, K), torch.tensor([0, -2]), "got labels from -2 to 0"),
        (torch.zeros(2, K), torch.zeros(2), "integers, got torch.float32"),
        ([[0.0] * K], torch.zeros(1).long(), "logits must be a tensor"),
    ],
)
def test_bad_input(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        DomainScores(K).update(logits, labels)


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        DomainScores(1)


def score_part(rank, folder, kind):
    """What one of two processes computes; the second has fewer images."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    logits, labels = draw(kind)
    part = slice(0, 40) if rank == 0 else slice(40, None)
    torch.save(scores_of(logits[part], labels[part], 11), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["soft", "one class"])
def test_two_processes_are_one(kind, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=partial(score_part, rank, tmp_path, kind)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    for rank in range(2):
        assert_scores(torch.load(tmp_path / f"{rank}.pt"), on_all_rows(*draw(kind)))
