import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from torch import nn

from lightning_recall.callbacks.validation_history import (
    Validation,
    ValidationHistory,
    column_title,
    freezing_advice,
    history_of,
    main_keys,
    result_table,
    verdict,
)


def history(*recalls, pretrained=0.79, maps=None):
    """One validation after each epoch."""
    made = ValidationHistory()
    made.baselines = {
        "pretrained features": {"val/recall@1": pretrained, "val/map@r": 0.294},
        "before training": {"val/recall@1": 0.5, "val/map@r": 0.2},
    }
    maps = maps or [0.1] * len(recalls)
    made.validations = [
        Validation(i + 1, {"val/recall@1": recall, "val/recall@2": 0.9, "val/map@r": score})
        for i, (recall, score) in enumerate(zip(recalls, maps, strict=True))
    ]
    return made


def embedder_with(head, unfreeze_epoch=0):
    """A module that can freeze its backbone."""
    return SimpleNamespace(embedder=SimpleNamespace(head=head), unfreeze_epoch=unfreeze_epoch)


DETAILS = {"lr": 0.0001, "max_epochs": 20, "freezing": freezing_advice(embedder_with(nn.Linear(2, 2)))}


def test_a_training_above_its_baseline_is_not_commented():
    assert verdict(history(0.5, 0.8), None, DETAILS) == ""
    assert verdict(history(0.5, 0.79), None, DETAILS) == ""
    assert verdict(ValidationHistory(), None, DETAILS) == ""
    unknown = history(0.5)
    unknown.baselines = {}
    assert verdict(unknown, None, DETAILS) == ""


def test_a_training_below_its_baseline_says_what_to_try_in_order():
    text = verdict(history(0.7, 0.75, 0.72, 0.71, maps=[0.2, 0.333, 0.3, 0.2]), "val/recall@1", DETAILS)
    assert text.startswith(
        "The training did not beat the pretrained features: R@1 75.0 at best, after 2 of 20 epochs, 79.0 without "
        "training. mAP@R rose from 29.4 to 33.3. Try"
    )
    tips = [
        "lower learning rate (now 0.0001)",
        "more epochs (now 20)",
        "unfreeze_epoch)",
        "unfreeze_epoch: null",
        "larger",
    ]
    positions = [text.index(tip) for tip in tips]
    assert positions == sorted(positions)
    assert "now" not in verdict(history(0.7), None, {})


def test_the_advice_on_freezing_fits_the_module():
    assert freezing_advice(embedder_with(nn.Linear(2, 2), None)) == "the backbone trained too (unfreeze_epoch: 0); "
    assert freezing_advice(embedder_with(nn.Identity())) == ""  # without a new layer nothing would be trained
    assert freezing_advice(embedder_with(None)) == ""
    assert freezing_advice(nn.Linear(2, 2)) == ""  # a module of one's own has no unfreeze_epoch
    assert "more epochs; larger images." in verdict(history(0.7), None, {})


def test_a_baseline_before_training_is_named_in_a_sentence():
    scores = history(0.7)
    scores.baselines = {"before training": {"val/recall@1": 0.79}}
    assert verdict(scores, None, {}).startswith("The training did not beat the scores before training: R@1 70.0")


@pytest.mark.parametrize(
    ("recalls", "said"),
    [
        ((0.7, 0.6, 0.5, 0.4, 0.3, 0.2), "the learning rate is too high"),
        ((0.5, 0.6, 0.7, 0.4, 0.3, 0.2), ""),
        ((0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "train longer"),
        ((0.7, 0.6), ""),  # too few to see a trend
    ],
)
def test_the_best_validations_place_says_why(recalls, said):
    text = verdict(history(*recalls), None, DETAILS)
    found = [phrase for phrase in ("the learning rate is too high", "train longer") if phrase in text]
    assert found == ([said] if said else [])


def test_a_training_that_falls_below_its_baseline_has_a_better_checkpoint():
    text = verdict(history(0.7, 0.82, 0.75), None, DETAILS)
    assert "ended below the pretrained features: R@1 75.0, 79.0 without training" in text
    assert "after 2 epochs, reached 82.0: use its checkpoint" in text


def test_the_monitor_chooses_the_best():
    made = history(0.8, 0.7, 0.8, maps=[0.1, 0.3, 0.2])
    assert made.best().epochs == 1  # the first of equal ones
    assert made.best("val/map@r").epochs == 2
    assert made.best("val/loss").epochs == 1


def test_two_columns_per_dataloader_are_shown():
    keys = ["val/recall@10", "val/recall@2", "val/map@r", "val/mrr"]
    assert main_keys(keys) == ["val/recall@2", "val/map@r"]
    assert main_keys(["val/0/recall@1", "val/0/map@r", "val/1/recall@1"]) == [
        "val/0/recall@1",
        "val/0/map@r",
        "val/1/recall@1",
    ]
    assert main_keys(["val/mAP medium", "val/mAP hard"]) == ["val/mAP medium", "val/mAP hard"]
    assert [column_title(key) for key in ("val/recall@1", "val/small/map@r")] == ["R@1", "small mAP@R"]


def test_the_table_has_baselines_best_and_last_side_by_side():
    console = Console(file=io.StringIO(), width=100)
    console.print(result_table(history(0.7, 0.8, 0.75, maps=[0.1, 0.2, 0.3]), "val/recall@1"))
    lines = console.file.getvalue().splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in lines if "│" in line]
    assert rows == [
        ["pretrained features", "79.0", "29.4"],
        ["before training", "50.0", "20.0"],
        ["best, after 2 epochs", "80.0", "20.0"],
        ["last, after 3 epochs", "75.0", "30.0"],
    ]


def test_the_history_survives_a_checkpoint():
    made, restored = history(0.7, 0.8), ValidationHistory()
    restored.load_state_dict(made.state_dict())
    assert restored.baselines == made.baselines
    assert restored.validations == made.validations
    assert restored.best().epochs == 2


def test_the_verdict_compares_the_best_validation_of_the_score_that_it_names():
    scores = history(0.7, 0.8, 0.6, maps=[0.5, 0.3, 0.2])  # the checkpoint is the first validation, R@1 is best later
    text = verdict(scores, "val/map@r", DETAILS)
    assert "The best validation, after 2 epochs, reached 80.0: train with a lower learning rate" in text
    assert "did not beat" not in text
    assert "use its checkpoint" in verdict(scores, "val/recall@1", DETAILS)


def test_a_history_with_its_own_columns():
    """Only its columns are in the table, and the score that chooses the checkpoint."""
    scores = ValidationHistory("Segmentation", {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"})
    names = ("miou", "pixel_accuracy", "iou/car", "loss")
    rows = [(0.3, 0.8, 0.5, 1.0), (0.4, 0.7, 0.1, 2.0)]
    for epoch, values in enumerate(rows, 1):
        parts = {f"val/{name}": value for name, value in zip(names, values, strict=True)}
        scores.validations.append(Validation(epoch, parts))
    scores.baselines = {"before training": {"val/miou": 0.1}}
    assert scores.best().epochs == 2
    assert scores.best("val/iou/car").epochs == 1
    for monitor, titles, best in (
        ("val/miou", ["mIoU", "pixel accuracy"], ["40.0", "70.0"]),
        ("val/iou/car", ["mIoU", "pixel accuracy", "iou car"], ["30.0", "80.0", "50.0"]),
    ):
        table = result_table(scores, monitor)
        assert table.title == "Segmentation"
        assert [column.header for column in table.columns] == ["", *titles]
        cells = list(zip(*(column.cells for column in table.columns), strict=True))
        assert cells[0] == ("before training", "10.0", *[""] * (len(titles) - 1))
        assert list(cells[1][1:]) == best
    assert scores.column_title("val/night/miou") == "night mIoU"
    assert scores.main_keys(["val/night/miou", "val/night/loss"]) == ["val/night/miou"]


def test_the_history_of_a_callback_or_of_the_module():
    empty, filled = ValidationHistory(), ValidationHistory()
    filled.validations.append(Validation(1, {"val/miou": 0.1}))

    def found(callbacks, module):
        return history_of(SimpleNamespace(callbacks=callbacks, lightning_module=module))

    assert found([], SimpleNamespace(history=filled)) is filled
    assert found([SimpleNamespace(history=filled)], SimpleNamespace()) is filled
    assert found([SimpleNamespace(history=empty)], SimpleNamespace(history=filled)) is filled
    assert found([SimpleNamespace(history=[1])], SimpleNamespace(history=empty)) is None
