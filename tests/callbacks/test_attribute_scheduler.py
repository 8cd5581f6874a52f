from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalModule
from lightning_recall.callbacks import AttributeScheduler
from lightning_recall.losses import ContrastiveLoss, MultipleLosses

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no", "ignore:.* expects unit-norm embeddings"
)


class Seen(Callback):
    """Records the settings of each batch."""

    def __init__(self):
        self.settings = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = pl_module.loss
        self.settings.append((trainer.current_epoch, loss.weights, loss.losses[0].rank_temperature))


def fit(folder, schedule, epochs, ckpt_path=None):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 6), torch.arange(24) % 6)
    loss = MultipleLosses([RecallAtKLoss((1, 2), rank_temperature=1.0), ContrastiveLoss()], [1.0, 0.0])
    seen = Seen()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[schedule, seen],
    )
    trainer.fit(RetrievalModule(nn.Linear(6, 4), loss), DataLoader(data, batch_size=24), ckpt_path=ckpt_path)
    return seen.settings, trainer


def schedule():
    return AttributeScheduler(
        {"loss.weights": {1: [1.0, 0.0], 3: [0.5, 0.5]}, "loss.losses.0.rank_temperature": {2: 0.5, 0: 1.0}}
    )


def test_settings_change_with_the_epochs_and_after_a_resume(tmp_path):
    expected = [
        (0, [1.0, 0.0], 1.0),
        (1, [1.0, 0.0], 0.75),
        (2, [0.75, 0.25], 0.5),
        (3, [0.5, 0.5], 0.5),
        (4, [0.5, 0.5], 0.5),
    ]
    settings, _ = fit(tmp_path / "whole", schedule(), 5)
    assert settings == expected
    settings, trainer = fit(tmp_path / "resumed", schedule(), 2)
    settings, _ = fit(tmp_path, schedule(), 5, ckpt_path=trainer.checkpoint_callback.best_model_path)
    assert settings == expected[2:]


def test_values_other_than_numbers_hold_until_the_next():
    values = AttributeScheduler(
        {"a": {0: 0, 4: None}, "b": {2: "x", 3: 5}, "c": {0: [1], 2: [1, 2]}, "d": {0: False, 2: True}}
    )
    assert [values.value("a", epoch) for epoch in range(6)] == [0, 0, 0, 0, None, None]
    assert [values.value("b", epoch) for epoch in range(4)] == ["x", "x", "x", 5]
    assert [values.value("c", epoch) for epoch in range(3)] == [[1], [1], [1, 2]]
    assert [values.value("d", epoch) for epoch in range(3)] == [False, False, True]


@pytest.mark.parametrize("name", ["loss.nothing", "loss.losses.7.rank_temperature", "nothing.at.all"])
def test_an_attribute_that_does_not_exist_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"RetrievalModule has no attribute {name}"):
        fit(tmp_path, AttributeScheduler({name: {0: 1.0}}), 1)


@pytest.mark.parametrize("schedules", [{}, {"a": {}}, {"a": {-1: 2.0}}])
def test_empty_schedules_are_refused(schedules):
    with pytest.raises(ValueError, match="schedules must map each attribute"):
        AttributeScheduler(schedules)


@pytest.mark.parametrize("name", ["embedder.weight", "embedder", "device"])
def test_parts_of_a_module_are_refused(name):
    module = RetrievalModule(nn.Linear(6, 4), RecallAtKLoss())
    with pytest.raises(ValueError, match=f"{name} is a parameter, buffer, module or read-only property"):
        AttributeScheduler({name: {0: 1.0}}).on_train_start(None, module)


class Holder(nn.Module):
    """Settings with and without an annotation."""

    def __init__(self, ks: Sequence[int] = (1, 2), temperature: float = 1, size: "int | str" = 4, other=1, real=1.0):
        super().__init__()
        self.ks, self.temperature, self.size, self.other, self.real = ks, temperature, size, other, real


@pytest.mark.parametrize(
    ("name", "points", "expected"),
    [
        ("ks", {0: (1, 2), 4: (2, 4)}, [[1, 2], [1, 3], [2, 3], [2, 4], [2, 4]]),  # 1.25, 2.5; 1.5, 3; 1.75, 3.5
        ("temperature", {0: 1, 4: 5}, [1.0, 2.0, 3.0, 4.0, 5.0]),
        ("temperature", {0: 1, 4: 2}, [1.0, 1.25, 1.5, 1.75, 2.0]),
        ("size", {0: 1, 4: 3}, [1, 2, 2, 3, 3]),
        ("size", {1: 8, 3: "auto"}, [8, 8, 8, "auto", "auto"]),
        ("other", {0: 1, 2: 2}, [1, 2, 2]),
        ("real", {0: 1, 2: 2}, [1.0, 1.5, 2.0]),
    ],
)
def test_integers_stay_integers_and_real_numbers_real(name, points, expected):
    module, schedule = nn.Module(), AttributeScheduler({f"loss.{name}": points})
    module.loss = Holder()
    for _ in range(2):  # a second fit starts with the values of the first one
        schedule.on_train_start(None, module)
        for epoch, value in enumerate(expected):
            schedule.on_train_epoch_start(SimpleNamespace(current_epoch=epoch), module)
            found = getattr(module.loss, name)
            assert (list(found) if isinstance(found, tuple) else found) == value
            assert not isinstance(value, int | float) or type(found) is type(value)


def test_a_fraction_of_an_integer_is_refused():
    module = nn.Module()
    module.loss = Holder()
    with pytest.raises(ValueError, match=r"AttributeScheduler: loss\.ks takes integers, got \[1, 2\.5\] for epoch 3"):
        AttributeScheduler({"loss.ks": {0: [1, 2], 3: [1, 2.5]}}).on_train_start(None, module)


def test_gradients_of_whole_batches_are_accumulated():
    data = TensorDataset(torch.randn(24, 6), torch.arange(24) % 2)
    steps = []

    class Steps(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            steps.append(trainer.global_step - sum(steps))

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=5,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AttributeScheduler({"accumulate_grad_batches": {0: 1, 4: 3}}), Steps()],
    )
    trainer.fit(RetrievalModule(nn.Linear(6, 4), ContrastiveLoss()), DataLoader(data, batch_size=4))
    assert steps == [6, 3, 3, 2, 2]  # six batches, by 1, 2 (from 1.5), 2, 3 (from 2.5), 3


@pytest.mark.parametrize("name", ["optimizer", "lr", "loss_lr", "lr_scheduler", "lr_interval", "lr_frequency"])
def test_attributes_that_are_read_once_are_refused(name):
    module = RetrievalModule(nn.Linear(6, 4), RecallAtKLoss())
    with pytest.raises(ValueError, match=f"{name} is only read in configure_optimizers"):
        AttributeScheduler({name: {0: 1}}).on_train_start(None, module)
    other = nn.Module()
    other.lr = 0.1  # another module may read it in every epoch
    AttributeScheduler({"lr": {0: 1}}).on_train_start(None, other)
