import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalEvaluation, RetrievalModule

pytestmark = pytest.mark.filterwarnings("ignore:.* expects unit-norm embeddings")

LABELS = torch.arange(12) // 3
PAIRS = TensorDataset(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), LABELS)


class Silent(nn.Module):
    """A loss without diagnostics."""

    calls = 0

    def forward(self, embeddings, labels):
        self.calls += 1
        return RecallAtKLoss((1,))(embeddings, labels)


class Data(LightningDataModule):
    def __init__(self, val):
        super().__init__()
        self.val = val

    def train_dataloader(self):
        return DataLoader(PAIRS, batch_size=12)

    def val_dataloader(self):
        loaders = {name: DataLoader(PAIRS, batch_size=12) for name in self.val}
        return loaders if len(loaders) > 1 else list(loaders.values())


class Own(RetrievalModule):
    """A third-party module that logs more."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/recall@9", 1.0)
        return super().validation_step(batch, batch_idx, dataloader_idx)


class Empty(RetrievalModule):
    """A third-party module that logs nothing else."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def configure_optimizers(self):
        return super().configure_optimizers()


class Shows(Callback):
    """A third-party callback with a hook that cannot log."""

    def on_fit_start(self, trainer, pl_module):
        self.started = True


class Logs(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("norm", 1.0)


SCORES = {"ks": (1, 2), "scores": ("recall", "map@r")}


def fit(*callbacks, kind=RetrievalModule, loss=None, val=("one",), scores=True, lr_scheduler=None, **kwargs):
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "lr_scheduler": lr_scheduler}
    module = kind(nn.Linear(4, 3), loss or RecallAtKLoss((1, 2)), **options)
    settings = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "log_every_n_steps": 1, **kwargs}
    checks = [RetrievalEvaluation(**SCORES)] if scores else []
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = Trainer(
        **settings,
        callbacks=[*checks, *callbacks],
        enable_checkpointing=saves,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Data(val))
    return trainer


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("val/recal@1", "EarlyStopping monitors 'val/recal@1', which is not logged. Did you mean 'val/recall@1'?"),
        ("val_recall@2", "Did you mean 'val/recall@2'?"),
        ("recall@1", "Did you mean 'val/recall@1'?"),
        (
            "val/recall@4",
            r"is not logged. RetrievalEvaluation logs it with ks=\[1, 2, 4\]. Logged keys: train/loss, val/recall@1,",
        ),
        ("val/recall@4x", "Did you mean 'val/recall@2'?"),
        ("val/map@r2", "Logged keys: train/loss, val/recall@1, val/recall@2, val/map@r."),
        ("val/map", "Did you mean 'val/map@r'?"),
        ("val/one/recall@1", "Did you mean 'val/recall@1'?"),
        ("train_loss", "Did you mean 'train/loss'?"),
    ],
)
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_mistyped_monitor_is_refused_before_the_first_batch(monitor, message, sanity):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        fit(EarlyStopping(monitor, mode="max"), num_sanity_val_steps=sanity)


def test_a_wrong_monitor_is_refused_before_training(tmp_path):
    loss = Silent()
    with pytest.raises(ValueError, match="ModelCheckpoint monitors 'val/recal@1'"):
        fit(ModelCheckpoint(tmp_path, monitor="val/recal@1"), loss=loss)
    assert loss.calls == 0


def test_named_dataloaders_have_their_own_keys():
    assert fit(EarlyStopping("val/b/recall@1", mode="max"), val=("a", "b")).current_epoch == 1
    with pytest.raises(ValueError, match=r"'val/recall@1', which is not logged.*val/a/recall@1, .*, val/b/map@r"):
        fit(EarlyStopping("val/recall@1", mode="max"), val=("a", "b"))


@pytest.mark.parametrize("monitor", ["val/recall@2", "val/map@r", "train/loss", "train/recall@1"])
@pytest.mark.parametrize("sanity", [0, 2])
def test_logged_keys_can_be_monitored(monitor, sanity):
    mode = "min" if monitor == "train/loss" else "max"
    stopping = EarlyStopping(monitor, mode=mode, check_on_train_epoch_end=True)
    assert fit(stopping, num_sanity_val_steps=sanity).current_epoch == 1


def test_checkpoints_may_monitor_the_step(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="step")
    fit(saving)
    assert saving.best_model_path


def test_names_are_unknown_before_the_first_validation():
    stopping = EarlyStopping("val/b/recall@1", mode="max", check_on_train_epoch_end=False)
    fit(stopping, val=("a", "b"), num_sanity_val_steps=0, check_val_every_n_epoch=2, max_epochs=2)
    assert stopping.best_score.isfinite()


def test_a_loss_without_diagnostics_only_logs_itself():
    with pytest.raises(ValueError, match="'train/recall@1', which is not logged"):
        fit(EarlyStopping("train/recall@1", mode="max"), loss=Silent())


def test_scores_need_the_evaluation_callback():
    with pytest.raises(ValueError, match="Add RetrievalEvaluation to the callbacks"):
        fit(EarlyStopping("val/recall@1", mode="max"), scores=False)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize("settings", [{"limit_val_batches": 0}, {"val": ()}])
def test_a_monitor_without_a_validation_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="'val/recall@1', but there is no validation: hold out validation data"):
        fit(EarlyStopping("val/recall@1", mode="max"), **settings)
    saving = ModelCheckpoint(tmp_path, monitor="val/recall@1", mode="max", save_last=True)
    with pytest.warns(UserWarning, match="no validation: only the last checkpoint is saved"):
        fit(saving, **settings)
    assert saving.last_model_path
    fit(EarlyStopping("val/recall@1", mode="max"), fast_dev_run=True, **settings)


def test_monitors_that_third_parties_may_log_are_not_refused(tmp_path):
    stopping = EarlyStopping("val/recall@9", mode="max")
    with pytest.warns(UserWarning, match="'val/recall@9', which is not among the known keys"):
        fit(stopping, kind=Own)
    assert stopping.best_score == 1
    assert fit(Logs(), EarlyStopping("norm")).current_epoch == 1
    rates = EarlyStopping("lr-SGD")
    assert fit(LearningRateMonitor(), rates, logger=CSVLogger(tmp_path)).current_epoch == 1
    assert fit(EarlyStopping("val/recal@1", mode="max", strict=False)).current_epoch == 1


@pytest.mark.parametrize("others", [(), (Logs(),)])
@pytest.mark.parametrize("sanity", [0, 2])
def test_scores_are_better_when_larger(others, sanity, tmp_path):
    settings = {"num_sanity_val_steps": sanity}
    message = '{} monitors {} with mode="min", Lightning\'s default, but larger is better: set mode="max".'
    for monitor in ("val/recall@1", "val/map@r", "train/recall@1"):
        for callback in (EarlyStopping(monitor), ModelCheckpoint(tmp_path, monitor=monitor)):
            with pytest.raises(ValueError, match=message.format(type(callback).__name__, f"'{monitor}'")):
                fit(callback, *others, **settings)
        with pytest.raises(ValueError, match=message.format("ReduceLROnPlateau", f"'{monitor}'")):
            fit(*others, lr_scheduler=lambda o, monitor=monitor: ReduceLROnPlateau(o, monitor), **settings)
    with pytest.raises(ValueError, match="'val/b/recall@1' with mode=\"min\""):
        fit(EarlyStopping("val/b/recall@1", strict=False), *others, val=("a", "b"), **settings)
    for callback in (EarlyStopping("train/loss", mode="max"), ModelCheckpoint(monitor="train/loss", mode="max")):
        with pytest.raises(ValueError, match='\'train/loss\' with mode="max", but smaller is better: set mode="min"'):
            fit(callback, *others, **settings)
    fit(EarlyStopping("norm"), Logs(), **settings)  # a third-party key, whose direction is unknown


def test_only_what_could_log_makes_the_check_lenient(tmp_path):
    message = "EarlyStopping monitors 'val/recal@1', which is not logged. Did you mean"
    stopping = EarlyStopping("val/recal@1", mode="max")
    for parts in ({"kind": Empty}, {"kind": type("Named", (RetrievalModule,), {"size": 3})}, {}):
        with pytest.raises(ValueError, match=message):
            fit(stopping, Shows(), LearningRateMonitor(), logger=CSVLogger(tmp_path), **parts)
