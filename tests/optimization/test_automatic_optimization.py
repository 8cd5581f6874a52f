from functools import partial

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, LambdaCallback
from pytorch_lightning.cli import ReduceLROnPlateau
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.optimization import WarmupCosineLR
from lightning_recall.optimization.automatic_optimization import AutomaticOptimization
from lightning_recall.optimization.parameter_groups import split_parameters

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

DATA = TensorDataset(torch.randn(24, 5, generator=torch.Generator().manual_seed(1)))


class Regression(AutomaticOptimization):
    """Two layers, the second with its own learning rate; dropout draws random numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        torch.manual_seed(0)
        self.first, self.second, self.drop = nn.Linear(5, 3), nn.Linear(3, 1), nn.Dropout(0.5)

    def training_step(self, batch, batch_idx):
        loss = (self.second(self.drop(self.first(batch[0]))) - 1).square().mean()
        self.log("train/loss", loss)
        return loss

    def parameter_groups(self):
        return split_parameters(self, [(self.second, {"lr": 0.5})])


def make(lr=0.1, **kwargs):
    return Regression(optimizer=partial(torch.optim.SGD, lr=lr), **kwargs)


def fit(folder, module, *callbacks, ckpt_path=None, **kwargs):
    defaults = {"max_epochs": 1, "enable_checkpointing": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
        **{**defaults, **kwargs},
    )
    # 6 batches; a loader without a generator of its own would draw from torch's
    trainer.fit(module, DataLoader(DATA, batch_size=4, generator=torch.Generator()), ckpt_path=ckpt_path)
    return trainer


def test_groups_keep_their_rates(tmp_path):
    trainer = fit(tmp_path, make())
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.5]
    assert isinstance(fit(tmp_path, Regression()).optimizers[0], torch.optim.AdamW)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (4, 4), (6, 2)])
def test_the_length_of_warmup_cosine(accumulate, steps, tmp_path):
    module = make(lr_scheduler=partial(WarmupCosineLR, warmup=1))
    trainer = fit(tmp_path, module, max_epochs=2, accumulate_grad_batches=accumulate)
    (config,) = trainer.lr_scheduler_configs
    assert config.scheduler.total_steps == trainer.global_step == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0


def test_a_list_of_schedulers_steps_every_few_epochs(tmp_path):
    schedulers = [partial(StepLR, step_size=1, gamma=0.5), partial(StepLR, step_size=1, gamma=0.1)]
    trainer = fit(tmp_path, make(lr_scheduler=schedulers, lr_frequency=2), max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.05)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"lr_scheduler": partial(OneCycleLR, max_lr=[0.1, 0.5], total_steps=5), "lr_interval": "step"},
            "total_steps=5",
        ),
        (
            {"lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=6), "lr_interval": "step"},
            "overrides the learn",
        ),
        (
            {"lr_scheduler": partial(ReduceLROnPlateau, monitor="train/loss"), "lr_interval": "step"},
            "steps after a valid",
        ),
    ],
)
def test_schedules_that_do_not_fit(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, make(**kwargs))


def test_the_learning_rate_that_a_tuner_sets(tmp_path):
    module = make()
    module.lr = 0.3
    assert [group["lr"] for group in fit(tmp_path, module).optimizers[0].param_groups] == [0.3, 0.5]


def saves(path, epoch=0):
    """Saves a checkpoint at the end of an epoch."""

    def save(trainer, *_):
        if trainer.current_epoch == epoch:
            trainer.save_checkpoint(path)

    return LambdaCallback(on_train_epoch_end=save)


def test_random_numbers_are_restored(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.manual_seed(5)
    whole = make()
    fit(tmp_path, whole, saves(path, 1), max_epochs=4)
    torch.manual_seed(6)
    resumed = make()
    fit(tmp_path, resumed, ckpt_path=path, max_epochs=4)
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize(
    ("build", "callbacks", "message"),
    [
        (partial(make, lr=0.2), [], r"optimizer's lr is \[0.1, 0.5\], but now \[0.2, 0.5\]"),
        (partial(make, lr_scheduler=partial(StepLR, step_size=1)), [], "scheduler is none, but now StepLR"),
        (make, [EMAWeightAveraging()], None),
    ],
)
@pytest.mark.filterwarnings("ignore:The checkpoint was not created with WeightAveraging")
def test_resuming_with_other_settings(build, callbacks, message, tmp_path):
    path = tmp_path / "a.ckpt"
    fit(tmp_path, make(), saves(path))
    if message is None:
        fit(tmp_path, build(), *callbacks, ckpt_path=path, max_epochs=2)
        return
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, build(), *callbacks, ckpt_path=path, max_epochs=2)


def test_resuming_averaged_weights_without_averaging(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(tmp_path, make(), saves(path), EMAWeightAveraging())
    with pytest.raises(ValueError, match="was trained with EMAWeightAveraging"):
        fit(tmp_path, make(), ckpt_path=path, max_epochs=2)


def test_resuming_between_two_steps_with_another_accumulation(tmp_path):
    path = tmp_path / "a.ckpt"

    def save(trainer, *arguments):
        if arguments[-1] == 2:  # batch_idx
            trainer.save_checkpoint(path)

    fit(tmp_path, make(), LambdaCallback(on_train_batch_end=save), accumulate_grad_batches=2)
    assert len(torch.load(path)["accumulated"]["gradients"]) == 4
    with pytest.raises(ValueError, match="accumulate_grad_batches=2: resume with that number, not 3"):
        fit(tmp_path, make(), ckpt_path=path, accumulate_grad_batches=3)
