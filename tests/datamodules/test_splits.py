import numpy as np
import pytest

from lightning_recall.datamodules.splits import held_out_classes

LABELS = np.repeat(np.arange(10), 6)


@pytest.mark.parametrize(("val_classes", "count"), [(0.2, 2), (0.01, 1), (3, 3)])
def test_all_images_of_a_held_out_class_are_held_out(val_classes, count):
    is_val = held_out_classes(LABELS, val_classes, seed=1)
    assert len(np.unique(LABELS[is_val])) == count
    assert not set(LABELS[is_val]) & set(LABELS[~is_val])
    assert np.array_equal(is_val, held_out_classes(LABELS, val_classes, seed=1))
    assert not np.array_equal(is_val, held_out_classes(LABELS, val_classes, seed=2))


@pytest.mark.parametrize("val_classes", [0.0, 0.99, 10, 25, -1])
def test_a_split_without_classes_is_rejected(val_classes):
    with pytest.raises(ValueError, match="must leave at least one for validation and one for training"):
        held_out_classes(LABELS, val_classes, seed=0)


@pytest.mark.parametrize("val_classes", [2.5, "0.1", float("nan"), float("inf"), None])
def test_numbers_that_are_not_integers_are_rejected(val_classes):
    with pytest.raises(ValueError, match=f"test_classes must be a fraction below 1 or an integer, got {val_classes!r}"):
        held_out_classes(LABELS, val_classes, 0, "test_classes")
