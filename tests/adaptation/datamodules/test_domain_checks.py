import numpy as np
import pytest
import torch

from lightning_recall.adaptation.data import DomainArrays
from lightning_recall.adaptation.datamodules.domain_checks import (
    check_image,
    check_labels,
    check_same_classes,
    describe_classes,
    listed,
)


def test_same_classes():
    check_same_classes(["a", "b"], {"source": ["a", "b"]})
    with pytest.raises(ValueError, match="the target has 'c' and lacks 'b': expected 'a', 'b'"):
        check_same_classes(["a", "b"], {"source": ["a", "b"], "the target": ["a", "c"]})
    with pytest.raises(ValueError, match="The classes of the target are in another order, 'b', 'a'"):
        check_same_classes(["a", "b"], {"the target": ["b", "a"]})
    with pytest.raises(ValueError, match="class_names is empty"):
        check_same_classes([], {})


def test_labels():
    check_labels("x", np.array([0, 1]), "ab", 0)
    check_labels("x", np.array([-1, 1]), "ab", -1)
    with pytest.raises(ValueError, match=r"x: labels must be from 0 to 1, for 2 classes; image 1 has -1\. Only images"):
        check_labels("x", np.array([0, -1]), "ab", 0)
    with pytest.raises(ValueError, match=r"labels must be from -1 to 1, for 2 classes; image 0 has 2\.$"):
        check_labels("x", np.array([2]), "ab", -1)


def test_images():
    check_image("x", DomainArrays(np.zeros((1, 3, 8, 8), np.uint8)), 8)
    for image, found in (
        (torch.zeros(3, 8, 9, dtype=torch.uint8), r"torch.uint8 \(3, 8, 9\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"torch.uint8 \(1, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"torch.float32 \(3, 8, 8\)"),
        (np.zeros(3), "ndarray"),
    ):
        with pytest.raises(ValueError, match=rf"x: images must be uint8 tensors of shape \(3, 8, 8\), .* got {found}:"):
            check_image("x", [(image, 0)], 8)


def test_checking_an_image_draws_no_random_numbers():
    class Random:
        def __getitem__(self, index):
            return torch.randint(256, (3, 8, 8), dtype=torch.uint8), 0

    state = torch.get_rng_state()
    check_image("x", Random(), 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_classes_without_an_image():
    assert describe_classes(np.array([1, 0, 1]), ["cup", "pen"]) == "cup 1, pen 2"
    with pytest.warns(UserWarning, match="No training image of the source is of 'pen'"):
        describe_classes(np.array([0]), ["cup", "pen"])
    many = [str(number) for number in range(30)]
    assert describe_classes(np.arange(30), many).endswith("19 1 and 10 more")
    assert listed(many).endswith("'9' and 20 more")
