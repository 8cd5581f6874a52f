import math

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from lightning_recall.optimization import ManualOptimization, OptimizerSettings, WarmupCosineLR

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
BATCHES = 7


def groups():
    return [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in (1.0, 0.25)]


def rates(warmup, total_steps, steps):
    optimizer = SGD(groups())
    scheduler = WarmupCosineLR(optimizer, warmup, total_steps)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(("warmup", "warmup_steps"), [(0.3, 6), (6, 6), (0, 0), (1, 1), (0.999, 20)])
def test_rates_follow_the_formula_in_every_group(warmup, warmup_steps):
    total = 20
    expected = [
        (t + 1) / (warmup_steps + 1)
        if t < warmup_steps
        else (1 + math.cos(math.pi * (t - warmup_steps) / (total - warmup_steps))) / 2
        if t < total
        else 0.0
        for t in range(total + 3)
    ]
    actual = rates(warmup, total, total + 3)
    torch.testing.assert_close(actual[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(actual[:, 1], actual[:, 0] / 4, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("warmup", "total_steps", "message"),
    [
        (-0.1, 10, "warmup must be a fraction of the training, from 0 to below 1, or a whole number of steps, got -0"),
        (2.5, 10, "or a whole number of steps, got 2.5"),
        (math.inf, 10, "got inf"),
        (math.nan, 10, "got nan"),
        (10, 10, "A warm-up of 10 steps does not fit in a training of 10 steps"),
        (0.1, 0, "total_steps must be at least 1, got 0"),
        (0.1, 2.5, "total_steps must be an integer"),
    ],
)
def test_invalid_settings_raise(warmup, total_steps, message):
    with pytest.raises(ValueError, match=message):
        WarmupCosineLR(SGD(groups()), warmup, total_steps)


def test_outside_of_a_training_the_length_must_be_given():
    scheduler = WarmupCosineLR(SGD(groups()))
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match="WarmupCosineLR needs total_steps"):
        scheduler.step()


class Regression(ManualOptimization):
    def __init__(self, **kwargs):
        super().__init__(
            optimizer=lambda groups: SGD(groups, lr=0.1),
            lr_scheduler=lambda optimizer: WarmupCosineLR(optimizer, 0.25),
            **kwargs,
        )
        self.layer = nn.Linear(2, 1)
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.optimize(self.layer(batch).square().mean())

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        self.rates.append(optimizer.param_groups[0]["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, closure)


def fit(module, ckpt_path=None, batches=BATCHES, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 3, "enable_checkpointing": False, **quiet, **kwargs}
    trainer = Trainer(accelerator="cpu", devices=1, **settings)
    trainer.fit(module, DataLoader(torch.ones(batches, 2), batch_size=1), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("module_settings", "trainer_settings", "steps"),
    [
        ({}, {}, 21),
        ({"accumulate_grad_batches": 3}, {}, 9),  # 3 + 3 + 1 batches an epoch
        ({"accumulate_grad_batches": 3}, {"max_steps": 5}, 5),
        ({"lr_interval": "step"}, {"limit_train_batches": 2}, 6),
    ],
)
def test_a_training_fills_in_its_number_of_steps(module_settings, trainer_settings, steps):
    module = Regression(**module_settings)
    trainer = fit(module, **trainer_settings)
    (config,) = trainer.lr_scheduler_configs
    assert config.scheduler.total_steps == config.scheduler.last_epoch == steps
    optimizer = SGD(module.parameters(), lr=0.1)
    expected = WarmupCosineLR(optimizer, 0.25, steps)
    assert len(module.rates) == steps
    for rate in module.rates:
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        expected.step()
    assert optimizer.param_groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"] == 0


class TwoOptimizers(Regression):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(2, 1)
        self.optimizer_settings = {"first": OptimizerSettings(), "second": OptimizerSettings(every_n_batches=3)}

    def configure_optimizers(self):
        optimizers = [SGD(self.layer.parameters(), lr=0.1), SGD(self.other.parameters(), lr=0.1)]
        schedulers = [{"scheduler": WarmupCosineLR(o), "interval": self.lr_interval} for o in optimizers]
        return optimizers, schedulers

    def training_step(self, batch, batch_idx):
        self.optimize({"first": self.layer(batch).mean(), "second": self.other(batch).mean()})


def test_each_of_several_optimizers_has_its_own_length():
    module = TwoOptimizers()
    module.lr_interval = "step"
    configs = fit(module).lr_scheduler_configs
    assert [config.scheduler.total_steps for config in configs] == [21, 7]
    assert [config.scheduler.last_epoch for config in configs] == [21, 7]
    module = TwoOptimizers()
    with pytest.raises(ValueError, match='set its interval to "step"'):
        fit(module)
    module.lr_interval = "step"
    with pytest.raises(
        ValueError, match="WarmupCosineLR needs the number of steps of the training, which is not known"
    ):
        fit(module, max_steps=4)


def test_a_training_without_end_needs_the_length():
    with pytest.raises(
        ValueError, match="WarmupCosineLR needs the number of steps of the training, which is not known"
    ):
        fit(Regression(), max_epochs=-1)


def test_a_resumed_training_has_the_length_of_its_checkpoint(tmp_path):
    first = fit(Regression(), limit_train_batches=5, max_steps=8)
    first.save_checkpoint(tmp_path / "some.ckpt")
    resumed = Regression()
    with pytest.raises(ValueError, match=r"was set up for 8 steps in the checkpoint, but this training has 15"):
        fit(resumed, tmp_path / "some.ckpt", limit_train_batches=5)


def test_one_batch_for_a_try_may_be_shorter_than_the_warm_up():
    module = Regression()
    module.lr_scheduler = lambda optimizer: WarmupCosineLR(optimizer, warmup=50)
    fit(module, fast_dev_run=True)
    assert module.rates == [pytest.approx(0.1 / 51)]
