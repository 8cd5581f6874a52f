from collections.abc import Sequence

import pytest
import torch

from lightning_recall.adaptation.batches import (
    check_labels,
    domain_batch,
    evaluation_batch,
    images_of,
)

K = 3


def images(count=4, channels=3, size=8):
    return torch.zeros(count, channels, size, size)


def labels(count=4):
    return torch.arange(count) % K


class Unread(Sequence):
    """A pair whose second part must not be read."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index != 0:
            raise AssertionError("target labels are read")
        return images()


@pytest.mark.parametrize("target", [images(), [images(), labels()], (images(), None), Unread()])
def test_target_labels_are_not_read(target):
    batch = domain_batch({"source": [images(), labels().to(torch.uint8)], "target": target}, K)
    assert torch.equal(batch.target, images())
    assert torch.equal(batch.labels, labels())
    assert batch.labels.dtype == torch.int64


PAIR = (images(), labels())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (PAIR, "got a tuple of 2: pass CombinedLoader"),
        ({"source": PAIR}, r"got \{'source': a tuple of 2\}"),
        ({"source": PAIR, "target": images(), "other": 1}, "'other': a int"),
        ({"source": images(), "target": images()}, r"'source': a tensor \(4, 3, 8, 8\)"),
        ({"source": None, "target": images()}, "'source': a NoneType"),  # CombinedLoader with mode "max_size"
        ({"source": PAIR, "target": None}, "'target': a NoneType.: pass CombinedLoader"),
        ({"source": PAIR, "target": {"image": images()}}, "target images must be a tensor .* 'image'"),
        ({"source": PAIR, "target": images()[0]}, r"target images must be a tensor .* got a tensor \(3, 8, 8\)"),
        ({"source": PAIR, "target": images(0)}, "no target images"),
        ({"source": (images(0), labels(0)), "target": images()}, "no source images"),
        ({"source": PAIR, "target": images(channels=1)}, r"same channels, .* \(3, 8, 8\) .* \(1, 8, 8\)"),
        ({"source": PAIR, "target": images(size=9)}, r"\(3, 8, 8\) in the source and \(3, 9, 9\) in the target"),
        ({"source": (images(), labels(3)), "target": images()}, r"shape \(4,\), one for each image, got \(3,\)"),
        ({"source": (images(), labels() + 1), "target": images()}, "from 0 to 2, got labels from 1 to 3: set num"),
        ({"source": (images(), labels() - 1), "target": images()}, "got labels from -1 to 1"),
        ({"source": (images(), labels().float()), "target": images()}, "integers, got torch.float32"),
        ({"source": {"image": images()}, "target": images()}, r"'image', .*: let the data set return pairs"),
        ({"source": (images(), ("cup",) * 4), "target": images()}, "class as an integer, or choose .* collate_fn"),
        ({"source": (images(), labels()[:, None]), "target": images()}, r"got \(4, 1\): .* \.squeeze\(1\)"),
        ({"source": (images(), torch.eye(4)[:, :K]), "target": images()}, r"got \(4, 3\): use labels\.argmax\(1\)"),
    ],
)
def test_bad_training_batches(batch, message):
    with pytest.raises(ValueError, match=message):
        domain_batch(batch, K)


def test_domains_of_different_size():
    batch = {"source": PAIR, "target": images(2)}
    assert len(domain_batch(batch, K).target) == 2
    with pytest.raises(ValueError, match=r"got 4 of the source and 2 of the target: .* drop_last=True"):
        domain_batch(batch, K, equal_sizes=True)


def test_evaluation_batches():
    given = torch.tensor([0, -1, 2, 1])
    assert torch.equal(evaluation_batch([images(), given])[1], given)
    assert evaluation_batch(images())[1].tolist() == [-1] * 4
    assert evaluation_batch([images()])[1].tolist() == [-1] * 4  # of a TensorDataset(images)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": images()}, "must be a pair .* 'image'"),
        ([images()] * 3, "must be a pair .* got a list of 3: let the data set return pairs"),
        ({"source": PAIR, "target": PAIR}, r"'target': pass \{.*\} without CombinedLoader"),
        ((images(), torch.eye(4)[:, :K]), r"use labels\.argmax\(1\)"),
        ((images(), 3), "must be a pair"),
        ((images(), labels(3)), r"shape \(4,\), .* got \(3,\)"),
        ((images()[0], labels(3)), r"got a tensor \(3, 8, 8\)"),
    ],
)
def test_bad_evaluation_batches(batch, message):
    with pytest.raises(ValueError, match=message):
        evaluation_batch(batch)


def test_missing_labels_are_an_option():
    given = torch.tensor([-1, 2])
    check_labels(given, K, allow_missing=True)
    check_labels(given[:0], K)
    with pytest.raises(ValueError, match="from 0 to 2, got labels from -1 to 2"):
        check_labels(given, K)
    with pytest.raises(ValueError, match="from 0 to 2, or -1 for images without label, got labels from -2 to 2"):
        check_labels(torch.tensor([-2, 2]), K, allow_missing=True)


def test_images_of_a_batch():
    assert images_of(3) == 3
    assert images_of([1, 2]) == 1
    assert images_of(()) == ()
