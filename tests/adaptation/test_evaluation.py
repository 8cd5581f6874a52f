from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_recall.adaptation.evaluation import (
    DomainHistory,
    Evaluation,
    check_target_labels,
    domain_loaders,
    logged_metrics,
    scores_by_key,
    warn_of_target_labels,
)
from lightning_recall.callbacks.validation_history import Validation, result_table


@pytest.mark.parametrize(("count", "processes"), [(7, 2), (2, 3)])
def test_each_image_counts_once(count, processes):
    data, total = TensorDataset(torch.randn(count, 3), torch.arange(count) % 3), 0
    for rank in range(processes):
        loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, processes, rank))
        evaluation = Evaluation(loader, 3, torch.device("cpu"))
        for logits, labels in loader:
            evaluation.update(logits, labels)
        total += evaluation.scores.confusion
    assert total.sum(1).tolist() == torch.bincount(torch.arange(count) % 3, minlength=3).tolist()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric DomainScores was called before")
def test_a_domain_without_images():
    evaluation = Evaluation([], 3, torch.device("cpu"))
    with pytest.raises(ValueError, match="The target dataloader of the test split has no images"):
        evaluation.result("test", "target")


ONE, TWO = DataLoader([1]), DataLoader([2])


def test_dataloaders_of_domains():
    assert domain_loaders({"target": ONE, "source": TWO}) == {"target": ONE, "source": TWO}
    assert domain_loaders({"source": TWO}) == {"source": TWO}
    assert domain_loaders(ONE) == {"target": ONE}
    for loaders, message in (
        ([ONE, TWO], "got 2 dataloaders without names"),
        ({"mnist": ONE}, "got a dict with the keys 'mnist'"),
        ({"source": ONE, "other": TWO}, "got a dict with the keys 'source', 'other'"),
    ):
        with pytest.raises(ValueError, match=f"or a single loader of target images, {message}"):
            domain_loaders(loaders)
    with pytest.raises(ValueError, match="Lightning treats a list or dict as several dataloaders"):
        domain_loaders({"source": torch.zeros(2)})


def test_which_scores_are_logged():
    scores = {name: torch.tensor(0.5) for name in ("confusion", "loss", "accuracy", "mean_class_accuracy", "bnm")}
    keys = scores_by_key("val", {"source": scores, "target": scores})
    assert set(keys) == {
        *("val/source/loss", "val/source/accuracy", "val/source/mean_class_accuracy"),
        *("val/target/accuracy", "val/target/mean_class_accuracy", "val/target/bnm"),
    }


def trainer_of(monitors=(), schedulers=(), loaders=None, enabled=True):
    return SimpleNamespace(
        val_dataloaders=loaders,
        enable_validation=enabled,
        callbacks=[SimpleNamespace(monitor=monitor) for monitor in monitors],
        lr_scheduler_configs=[SimpleNamespace(scheduler=SimpleNamespace(monitor=monitor)) for monitor in schedulers],
    )


@pytest.mark.parametrize(
    ("loaders", "enabled", "domains"),
    [
        (None, True, {"source", "target"}),
        (ONE, True, {"target"}),
        ({"source": ONE}, True, {"source"}),
        (None, False, set()),
    ],
)
def test_the_keys_that_will_be_logged(loaders, enabled, domains):
    metrics = logged_metrics(trainer_of(loaders=loaders, enabled=enabled))
    assert {key.split("/")[1] for key in metrics.keys if key.startswith("val/")} == domains
    assert ("val/target/bnm" in metrics.higher_is_better) == ("target" in domains)
    losses = {"train/loss"} | ({"val/source/loss"} if "source" in domains else set())
    assert set(metrics.lower_is_better) == losses
    assert set(metrics.keys) == losses | set(metrics.higher_is_better)


def test_target_labels_that_choose_a_model():
    warn_of_target_labels(trainer_of(["val/source/accuracy", "val/target/bnm", None], ["train/loss"]))
    with pytest.warns(
        UserWarning, match="monitors val/target/mean_class_accuracy, which uses labels of the target"
    ) as warned:
        warn_of_target_labels(trainer_of(["val/target/accuracy", "val/target/mean_class_accuracy"]))
    assert len(warned) == 1
    scheduled = trainer_of(schedulers=["val/target/accuracy"])
    with pytest.warns(UserWarning, match="uses labels of the target domain"):
        warn_of_target_labels(scheduled)
    check_target_labels(scheduled, {"val/target/accuracy": 0.5})
    check_target_labels(trainer_of(["val/target/bnm"]), {})
    with pytest.raises(ValueError, match="validation images of the target have no labels: monitor val/source/accuracy"):
        check_target_labels(scheduled, {"val/target/bnm": 0.5})


def history_of(rows, keys):
    history = DomainHistory()
    history.validations = [Validation(epoch + 1, dict(zip(keys, row, strict=True))) for epoch, row in enumerate(rows)]
    return history


def test_the_best_validation_does_not_depend_on_target_labels():
    keys = ("val/target/accuracy", "val/target/bnm", "val/source/accuracy")
    history = history_of([(0.9, 0.1, 0.4), (0.2, 0.3, 0.8), (0.3, 0.5, 0.6)], keys)
    assert history.best().epochs == 2
    assert history.best("val/source/loss").epochs == 2  # not recorded
    assert history.best("val/target/bnm").epochs == 3
    assert history.best("val/target/accuracy").epochs == 1  # what the user asks for
    alone = history_of([(0.9, 0.1), (0.2, 0.3)], keys[:2])
    assert alone.best().epochs == 2


def test_the_table():
    keys = ("val/source/accuracy", "val/source/mean_class_accuracy", "val/target/information_maximization")
    table = result_table(history_of([(0.5, 0.4, 1.25)], keys), keys[2])
    assert [column.header for column in table.columns] == ["", "source accuracy", "target IM"]
    assert [next(iter(column.cells)) for column in table.columns][1:] == ["50.0", "1.250"]
