from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning import __version__ as pl_version
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalEvaluation, RetrievalModule
from lightning_recall.callbacks import RunSummary
from lightning_recall.callbacks.run_summary import batch_rows, print_rows

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no", "ignore:.* expects unit-norm embeddings"
)


def net():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))


def loader(size=48, batch_size=24):
    return DataLoader(TensorDataset(torch.randn(size, 6), torch.arange(size) % 12), batch_size=batch_size)


class Plain(LightningModule):
    """A LightningModule of a user, whose batches are dicts."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, batch_idx):
        return self.net(batch["images"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, loaders, tmp_path, *callbacks, **kwargs):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RunSummary(), *callbacks],
        **kwargs,
    )
    trainer.fit(module, *loaders)
    return trainer


def test_it_prints_what_is_trained_and_the_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    module = RetrievalModule(net(), RecallAtKLoss((1, 2), rank_temperature=1.0), chunk_size=10)
    saving = ModelCheckpoint(tmp_path, monitor="val/recall@1", mode="max")
    callbacks = (RetrievalEvaluation(ks=(1,)), saving)
    trainer = fit(module, (loader(), loader()), tmp_path, *callbacks, max_epochs=2, num_sanity_val_steps=0)
    shown = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if "│" in line}
    assert shown.count("network") == 1
    assert lines["loss"] == "RecallAtKLoss"
    assert lines["steps"] == "4, 2 batches per epoch"
    assert lines["device"] == "cpu, 1 process, precision 32-true"
    assert lines["Lightning"] in (f"pytorch_lightning {pl_version}", f"lightning.pytorch {pl_version}")
    assert lines["batch"] == "24 images of 12 classes"
    assert lines["chunks"] == "3 of at most 10 images"
    assert lines["memory"].startswith("about ")
    assert "Retrieval on the val split, in %" in shown
    assert "R@1" in shown
    assert "mAP@R" in shown
    assert lines["last, after 2 epochs"] == f"{100 * trainer.callback_metrics['val/recall@1'].item():.1f}"
    (best,) = (value for name, value in lines.items() if name.startswith("best, after"))
    assert best == f"{100 * saving.best_model_score.item():.1f}"
    assert not any(name.startswith(("val/", "best val/")) for name in lines)
    assert trainer.callback_metrics["images/s"] > 0


def test_images_per_second_count_the_loading_and_not_the_validation(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("lightning_recall.callbacks.run_summary.time.perf_counter", lambda: clock[0])
    summary, module = RunSummary(), RetrievalModule(net(), RecallAtKLoss())
    logged = []
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.append((name, value)))
    trainer, batch = (
        Trainer(barebones=True),
        [(torch.zeros(10, 6), torch.zeros(10)), (torch.zeros(2, 6), torch.zeros(2))],
    )
    summary.printed = True
    summary.on_train_epoch_start(trainer, module)
    clock[0] = 2.0  # half a second of it for loading
    summary.on_train_batch_end(trainer, module, None, batch, 0)
    clock[0] = 3.0
    summary.on_train_batch_end(trainer, module, None, batch, 1)
    clock[0] = 50.0
    summary.on_validation_end(trainer, module)
    clock[0] = 54.0
    summary.on_train_batch_end(trainer, module, None, batch, 2)
    assert logged == [("images/s", 6.0), ("images/s", 12.0), ("images/s", 3.0)]


def test_batches_of_another_kind_are_not_counted(tmp_path, capsys):
    data = [{"images": torch.randn(4, 6)} for _ in range(2)]
    trainer = fit(
        Plain(),
        (DataLoader(data, batch_size=None),),
        tmp_path,
        max_epochs=1,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    shown = capsys.readouterr().out
    assert "Plain" in shown
    assert "chunks" not in shown
    assert "images/s" not in trainer.callback_metrics


@pytest.mark.parametrize("chunk_size", [16, "auto"])
def test_a_chunk_size_that_is_measured_is_not_known_yet(chunk_size, tmp_path, capsys):
    module = RetrievalModule(net(), RecallAtKLoss(rank_temperature=1.0), chunk_size=chunk_size)
    fit(module, (loader(),), tmp_path, max_epochs=1, enable_checkpointing=False, limit_val_batches=0)
    assert ("auto: measured at the first step" in capsys.readouterr().out) == (chunk_size == "auto")


BATCHES = {
    "mapping": ((UserDict(a=torch.zeros(6, 6)), torch.arange(6) % 3), "6 images of 3 classes"),
    "several labels": ((torch.zeros(6, 6), torch.ones(6, 4)), "6 images"),
    "texts": ((["a", "b"], torch.arange(2)), "2 images of 2 classes"),
}


class Unwraps(nn.Module):
    """A network whose inputs may be a mapping."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, inputs):
        return self.net(inputs["a"] if isinstance(inputs, UserDict) else inputs)


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_any_kind_are_described(kind):
    batch, row = BATCHES[kind]
    assert batch_rows(Trainer(barebones=True, accelerator="cpu"), batch, Plain()) == {"batch": row}


@pytest.mark.parametrize("kind", BATCHES)
def test_memory_is_estimated_for_inputs_with_tensors(kind):
    batch, row = BATCHES[kind]
    module = RetrievalModule(Unwraps(), RecallAtKLoss(), chunk_size=4)
    module.trainer = Trainer(barebones=True, accelerator="cpu")
    found = batch_rows(module.trainer, batch, module)
    assert found["batch"] == row
    assert ("memory" in found) == (kind != "texts")


def test_a_batch_smaller_than_a_chunk_is_one_chunk_of_its_size():
    module = RetrievalModule(net(), RecallAtKLoss(), chunk_size=100)
    module.trainer = Trainer(barebones=True)
    found = batch_rows(module.trainer, (torch.zeros(6, 6), torch.arange(6) % 3), module)
    assert found["chunks"] == "1 of at most 6 images"


def test_a_module_adds_rows_and_replaces_ours(printed):
    class Describes(Plain):
        def training_summary(self, batch):
            return {"network": "a small one", "inputs": f"{len(batch[0])} vectors"}

    trainer = SimpleNamespace(world_size=1, estimated_stepping_batches=6, num_training_batches=3, precision="32-true")
    RunSummary().on_train_batch_start(trainer, Describes(), (torch.zeros(6, 6), torch.arange(6)), 0)
    ((_, rows),) = printed
    assert list(rows) == ["network", "steps", "device", "Lightning", "batch", "inputs"]
    assert (rows["network"], rows["inputs"]) == ("a small one", "6 vectors")


@pytest.fixture
def printed(monkeypatch):
    """Titles and rows of the tables that are printed."""
    tables = []
    monkeypatch.setattr("lightning_recall.callbacks.run_summary.print_rows", lambda *table: tables.append(table))
    return tables


def test_each_training_is_summarised_for_all_processes(printed, monkeypatch):
    trainer = SimpleNamespace(world_size=2, estimated_stepping_batches=6, num_training_batches=3, precision="32-true")
    module, summary, logged = Plain(), RunSummary(), {}
    module.net = nn.ModuleList([nn.Linear(1000, 2000).requires_grad_(False), nn.Linear(500, 1000)])
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    clock = iter([0.0, 2.0, 0.0, 2.0])
    monkeypatch.setattr("lightning_recall.callbacks.run_summary.time.perf_counter", lambda: next(clock))
    batch = (torch.zeros(6, 6), torch.arange(6) % 3)
    for _ in range(2):
        summary.on_train_start(trainer, module)
        summary.on_train_epoch_start(trainer, module)
        summary.on_train_batch_start(trainer, module, batch, 0)
        summary.on_train_batch_end(trainer, module, None, batch, 0)
    (title, rows), again = printed
    assert again == (title, rows)
    assert rows["network"] == "Plain, 2.50 million parameters, 0.50 million trainable"
    assert rows["device"] == "cpu, 2 processes, precision 32-true"
    assert rows["batch"] == "12 images, 6 of 3 classes on each process"
    assert logged == {"images/s": 6.0}  # 12 images in 2 seconds


@pytest.mark.parametrize("fast_dev_run", [False, 1])
def test_the_last_table_holds_validation_scores_of_real_runs(fast_dev_run, printed):
    metrics = {"val/recall@1": torch.tensor(0.5), "train/loss": torch.tensor(0.25)}
    trainer = SimpleNamespace(
        callback_metrics=metrics,
        callbacks=[],
        checkpoint_callbacks=[],
        lightning_module=None,
        fast_dev_run=fast_dev_run,
        progress_bar_callback=None,
    )
    RunSummary().on_fit_end(trainer, None)
    assert printed == ([] if fast_dev_run else [("Last validation", {"val/recall@1": "0.5000"})])


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_prints(rank, capsys, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    print_rows("Training", {"loss": "CircleLoss"})
    assert ("CircleLoss" in capsys.readouterr().out) == (rank == 0)
