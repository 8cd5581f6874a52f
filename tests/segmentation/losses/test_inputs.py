import re

import pytest
import torch

from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, StructuralSimilarityLoss
from lightning_recall.segmentation.losses.inputs import split_ignored

LOSSES = (RecallCrossEntropyLoss, StructuralSimilarityLoss)
LOGITS = torch.zeros(2, 3, 4, 5)
TARGET = torch.zeros(2, 4, 5, dtype=torch.long)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (LOGITS[:, :2], TARGET, "num_classes = 3 channels in dimension 1, got shape (2, 2, 4, 5). Change the last"),
        (LOGITS[:, :1], TARGET, "got shape (2, 1, 4, 5). For two classes, use two channels"),
        (LOGITS.long(), TARGET, "logits must be floating point (B, C, ...), got torch.int64"),
        (LOGITS[0, :, 0, 0], TARGET[0, 0, 0], "logits must be floating point (B, C, ...), got torch.float32 (3,)"),
        (LOGITS, TARGET.float(), "target must hold class indices as integers, got torch.float32: convert"),
        (LOGITS, TARGET > 0, "class indices as integers, got torch.bool"),
        (LOGITS, LOGITS.softmax(1), "class probabilities are not supported, use target.argmax(1)"),
        (LOGITS[..., :2], TARGET, "target must have shape (2, 4, 2) for logits (2, 3, 4, 2), got (2, 4, 5): resize"),
        (LOGITS, TARGET[:, None], "got (2, 1, 4, 5): remove its dimension 1, target.squeeze(1)"),
        (LOGITS, TARGET[:1], "target must have shape (2, 4, 5)"),
        (LOGITS, TARGET + 3, "class indices from 0 to 2 or ignore_index (None), got 3: set ignore_index"),
        (LOGITS, TARGET - 1, "class indices from 0 to 2 or ignore_index (None), got -1"),
        (LOGITS, TARGET.tolist(), "target must be a tensor, got list"),
        (LOGITS, TARGET.to("meta"), "target is on meta, logits on cpu: move one of them"),
    ],
)
def test_wrong_input_has_one_clear_error(loss, logits, target, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(3)(logits, target)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_label_out_of_range_is_an_error_beside_ignored_pixels(loss):
    target = TARGET.clone()
    target[0, 0, :2] = 255
    loss(3, 255)(LOGITS, target)
    target[0, 0, 0] = 254
    with pytest.raises(ValueError, match=r"from 0 to 2 or ignore_index \(255\), got 254"):
        loss(3, 255)(LOGITS, target)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1,), "num_classes must be at least 2, got 1"),
        ((2.0,), "num_classes must be an integer"),
        ((3, "void"), "ignore_index must be an integer or None, got 'void'"),
    ],
)
def test_wrong_settings(loss, settings, message):
    with pytest.raises(ValueError, match=message):
        loss(*settings)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("loss", LOSSES)
def test_any_integers_are_labels(loss, dtype):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    target[0, 0] = 77
    assert torch.equal(loss(3, 77)(logits, target.to(dtype)), loss(3, 77)(logits, target))


def test_split_ignored():
    labels, valid = split_ignored(torch.tensor([2, -5, 1]), 3, -5)
    assert labels.tolist() == [2, 0, 1]
    assert valid.tolist() == [True, False, True]
    assert split_ignored(torch.tensor([2]), 3, None)[1] is None
