import numpy as np
import pytest

from lightning_recall.adaptation.data import DomainArrays
from lightning_recall.adaptation.datamodules.splits import check_fraction, hold_out


def data_of(labels):
    """Image i is of colour i."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 3, 2, 2))
    return DomainArrays(images.copy(), labels, [str(i) for i in range(max(labels) + 1)])


def numbers(data):
    return data.images[:, 0, 0, 0].tolist()


def test_each_class_holds_out_its_fraction_and_keeps_an_image():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 1 + [3] * 2)
    assert np.bincount(hold_out(data_of(labels), 0.01, 0)[1].labels).tolist() == [1, 1, 0, 1]
    kept, held = hold_out(data_of(labels), 0.6, seed=0)
    assert np.bincount(held.labels, minlength=4).tolist() == [12, 6, 0, 1]
    assert sorted(numbers(kept) + numbers(held)) == list(range(33))
    assert numbers(kept) == sorted(numbers(kept))
    assert (kept.labels == labels[numbers(kept)]).all()
    assert numbers(hold_out(data_of(labels), 0.6, seed=0)[1]) == numbers(held)
    assert numbers(hold_out(data_of(labels), 0.6, seed=1)[1]) != numbers(held)


def test_without_stratification_labels_do_not_matter():
    first, second = np.zeros(50, dtype=int), np.arange(50)
    splits = [numbers(hold_out(data_of(labels), 0.3, 0, stratified=False)[1]) for labels in (first, second)]
    assert splits[0] == splits[1]
    assert len(splits[0]) == 15


def test_errors():
    with pytest.raises(ValueError, match=r"val_fraction=0.1: 2 images are too few to hold out any"):
        hold_out(data_of(np.array([0, 1])), 0.1, 0)
    for wrong in (1, -0.1, True, "0.5"):
        with pytest.raises(ValueError, match="val_fraction must be at least 0 and below 1, got"):
            check_fraction("val_fraction", wrong)
