import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BackboneFinetuning, EarlyStopping, LearningRateFinder, ModelCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.modules import ManualOptimization
from lightning_recall.optimization.parameter_groups import split_parameters

ROWS = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))


class Net(ManualOptimization):
    """A network and a loss with a parameter."""

    def __init__(self, optimizer=None, loss_lr=None, **kwargs):
        super().__init__(optimizer=optimizer or sgd(), **kwargs)
        self.loss_lr = loss_lr
        torch.manual_seed(0)
        self.backbone, self.head, self.loss = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def parameter_groups(self):
        return split_parameters(self, [] if self.loss_lr is None else [(self.loss, {"lr": self.loss_lr})])

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.head(self.backbone(batch[0]).tanh())).square().mean()
        self.optimize(loss)
        self.log("train/loss", loss.detach())


def sgd(lr=0.5, **kwargs):
    return lambda parameters: SGD(parameters, lr=lr, **{"momentum": 0.9, **kwargs})


def fit(module, ckpt_path=None, max_epochs=1, **kwargs):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **kwargs}
    trainer = Trainer(**settings, enable_progress_bar=False, enable_model_summary=False, max_epochs=max_epochs)
    trainer.fit(module, DataLoader(TensorDataset(ROWS), batch_size=2), ckpt_path=ckpt_path)
    return trainer


def resumed(folder, first, second, **kwargs):
    """Trains one module for an epoch, or a part of it, and resumes with another module for a second epoch."""
    path = folder / "first.ckpt"
    fit(first, **{"limit_train_batches": 5, **kwargs}).save_checkpoint(path)
    return fit(second, path, max_epochs=2)


def sequence(length):
    return lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, length)], [3]
    )


def cycle(max_lr=1.0, total_steps=10):
    return lambda optimizer: OneCycleLR(optimizer, max_lr, total_steps=total_steps)


def from_zero(optimizer):
    return LambdaLR(optimizer, lambda step: step / 10)


SCHEDULES = [
    None,
    cycle(),
    sequence(9),
    [lambda o: LinearLR(o, 0.25, total_iters=4), lambda o: CosineAnnealingLR(o, 10)],
    lambda o: StepLR(o, 2, gamma=0.5),
    lambda o: MultiStepLR(o, [2, 7]),
    lambda o: LambdaLR(o, lambda step: 1 / (step + 1)),
    lambda o: CosineAnnealingWarmRestarts(o, 3),
    lambda o: CyclicLR(o, 0.1, 0.2, 3),
]


@pytest.mark.filterwarnings("ignore:OneCycleLR ends after")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_same_settings_resume(tmp_path, schedule):
    def make(optimizer=None):
        return Net(optimizer, lr_scheduler=schedule, lr_interval="step")

    assert resumed(tmp_path, make(), make()).global_step == 10
    assert resumed(tmp_path, make(Adam), make(Adam)).global_step == 10


def test_a_plateau_resumes(tmp_path):
    def make():
        plateau = lambda o: ReduceLROnPlateau(o, "train/loss", patience=0, threshold=9, threshold_mode="abs")  # noqa: E731  # one line
        return Net(lr_scheduler=plateau, loss_lr=0.1)

    trainer = resumed(tmp_path, make(), make())
    assert trainer.global_step == 10
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)  # it has changed since the start


@pytest.mark.filterwarnings("ignore:OneCycleLR ends after")
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"optimizer": sgd(0.1)}, "optimizer's lr is 0.5, but now 0.1. A resumed training keeps"),
        ({}, {"optimizer": sgd(weight_decay=0.1)}, "optimizer's weight_decay is 0, but now 0.1"),
        ({}, {"optimizer": sgd(momentum=0.8)}, "optimizer's momentum is 0.9, but now 0.8"),
        (
            {"optimizer": AdamW},
            {"optimizer": lambda p: AdamW(p, betas=(0.5, 0.9))},
            r"999\], but now \[0.5, 0.9\]",
        ),
        ({}, {"optimizer": AdamW}, "optimizer is SGD, but now AdamW. A resumed"),
        ({"optimizer": Adam}, {"optimizer": AdamW}, "optimizer is Adam, but now AdamW"),
        ({"loss_lr": 0.2}, {"loss_lr": 0.3}, r"lr is \[0.5, 0.2\], but now \[0.5, 0.3\]"),
        ({"lr_scheduler": cycle()}, {"lr_scheduler": cycle(2.0)}, "max_lr is 1.0, but now 2.0"),
        ({"lr_scheduler": cycle()}, {"lr_scheduler": cycle(total_steps=20)}, "total_steps is 10, but now 20"),
        ({"lr_scheduler": from_zero}, {"lr_scheduler": from_zero, "optimizer": sgd(0.1)}, "lr is 0.5, but now 0.1"),
        ({"lr_scheduler": cycle()}, {}, "scheduler is OneCycleLR, but now none"),
        ({}, {"lr_scheduler": cycle()}, "scheduler is none, but now OneCycleLR"),
        (
            {"lr_scheduler": SCHEDULES[4]},
            {"lr_scheduler": lambda o: StepLR(o, 2, gamma=0.1)},
            "gamma is 0.5, but now 0.1",
        ),
        (
            {"lr_scheduler": SCHEDULES[5]},
            {"lr_scheduler": lambda o: MultiStepLR(o, [2, 8])},
            "'7': 1}, but now",
        ),
        ({"lr_scheduler": sequence(9)}, {"lr_scheduler": sequence(8)}, "part 1's T_max is 9, but now 8"),
        (
            {"lr_scheduler": SCHEDULES[4]},
            {"lr_scheduler": SCHEDULES[4], "lr_interval": "epoch"},
            "interval is step",
        ),
        (
            {"lr_scheduler": SCHEDULES[4]},
            {"lr_scheduler": SCHEDULES[4], "lr_frequency": 2},
            "frequency is 1, but now 2",
        ),
    ],
)
def test_other_settings_are_refused(tmp_path, first, second, message):
    made = [Net(**{"lr_interval": "step", **settings}) for settings in (first, second)]
    with pytest.raises(ValueError, match=message):
        resumed(tmp_path, *made)


def test_other_settings_are_used_after_loading_only_the_weights(tmp_path):
    fit(Net()).save_checkpoint(tmp_path / "first.ckpt")
    module = Net(sgd(0.125))
    module.load_state_dict(torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"])
    trainer = fit(module)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125


def test_another_number_of_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 6 parameter tensors, but this run's has 4 \+ 2 parameter tensors"):
        resumed(tmp_path, Net(), Net(loss_lr=0.5))


def test_the_checkpoint_of_another_module_is_compared_as_far_as_possible(tmp_path):
    class Automatic(LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone, self.head, self.loss = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.loss(self.head(self.backbone(batch[0]))).sum()

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=0.01)

    assert resumed(tmp_path, Automatic(), Net(sgd(0.01))).current_epoch == 2
    with pytest.raises(ValueError, match="has 6 parameter tensors, but"):
        resumed(tmp_path, Automatic(), Net(loss_lr=0.5))


def test_accumulated_gradients_need_the_same_number_of_batches(tmp_path):
    class Saves(Net):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 0:
                self.trainer.save_checkpoint(tmp_path / "accumulated.ckpt")

    fit(Saves(accumulate_grad_batches=2))
    with pytest.raises(ValueError, match="accumulate_grad_batches=2: resume with that number, not 3"):
        fit(Net(accumulate_grad_batches=3), tmp_path / "accumulated.ckpt")
    assert fit(Net(accumulate_grad_batches=2), tmp_path / "accumulated.ckpt").global_step == 3


def test_a_checkpoint_of_weights_only_cannot_be_resumed(tmp_path):
    fit(Net()).save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"holds weights only, so training cannot be resumed.*--weights FILE"):
        fit(Net(), tmp_path / "weights.ckpt", max_epochs=2)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_backbone_that_was_unfrozen_resumes(tmp_path):
    def train(epochs, ckpt_path=None):
        callbacks = [BackboneFinetuning(1), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)]
        return fit(Net(), ckpt_path, epochs, callbacks=callbacks, enable_checkpointing=True)

    trainer = train(2)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.5, 0.05]
    again = train(3, tmp_path / "epoch=1.ckpt")
    assert [group["lr"] for group in again.optimizers[0].param_groups] == [0.5, 0.1]


def test_an_option_that_a_newer_torch_adds_is_ignored(tmp_path):
    path = tmp_path / "first.ckpt"
    fit(Net()).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["optimization_settings"]["optimizer's maximize"]
    torch.save(checkpoint, path)
    assert fit(Net(), path, max_epochs=2).global_step == 10


def test_learning_rate_finder_is_ignored_without_training(tmp_path):
    class Predicts(Net):
        def predict_step(self, batch, batch_idx):
            return self.backbone(batch[0])

    fit(Net()).save_checkpoint(tmp_path / "first.ckpt")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[LearningRateFinder()])
    loader = DataLoader(TensorDataset(ROWS), batch_size=5)
    assert len(trainer.predict(Predicts(), loader, ckpt_path=tmp_path / "first.ckpt")) == 2


def test_learning_rate_finder_is_refused_when_resuming(tmp_path):
    fit(Net()).save_checkpoint(tmp_path / "first.ckpt")
    with pytest.raises(ValueError, match="LearningRateFinder would train with a new optimizer"):
        fit(Net(), tmp_path / "first.ckpt", max_epochs=2, callbacks=[LearningRateFinder()])


def test_another_patience_is_refused(tmp_path):
    def stopping(patience, monitor="train/loss"):
        return {"callbacks": [EarlyStopping(monitor, patience=patience, check_on_train_epoch_end=True)]}

    path = tmp_path / "first.ckpt"
    fit(Net(), **stopping(1)).save_checkpoint(path)
    message = (
        "EarlyStopping on 'train/loss' has patience=1 in the checkpoint, but 50 now. .* set patience=1. To continue"
    )
    with pytest.raises(ValueError, match=message):
        fit(Net(), path, max_epochs=2, **stopping(50))
    assert fit(Net(), path, max_epochs=2, **stopping(1)).global_step == 10
