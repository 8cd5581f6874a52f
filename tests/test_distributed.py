"""Several processes have the gradient, the loss and the batches of one."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lightning_recall import (
    ClassBalancedBatchSampler,
    RecallAtKLoss,
    RetrievalModule,
    SimilarityMixup,
    losses,
)
from lightning_recall.data import ChunkLoader

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:RecallAtKLoss expects unit-norm embeddings",  # ScaledLoss
)

LABELS = torch.arange(48) // 4
IMAGES = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))


class Vectors(LightningDataModule):
    """Batches of 16 vectors, three an epoch, in chunks of 3: 3 processes get 5, 5 and 6."""

    def __init__(self, labels=LABELS):
        super().__init__()
        self.labels = labels

    def train_dataloader(self):
        return ChunkLoader(TensorDataset(IMAGES, self.labels), ClassBalancedBatchSampler(LABELS, 16, 4), 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))

    def forward(self, x):
        return F.normalize(self.layers(x), dim=1)


class WithBackbone(Net):
    @property
    def backbone(self):
        return self.layers[0]


class ScaledLoss(nn.Module):
    """A loss with a parameter that computes the queries of its process."""

    shares_queries = True
    accepts_virtual = True

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.recall = RecallAtKLoss(ks=(1, 2), rank_temperature=0.1)
        self.queried = []

    def forward(self, embeddings, labels, queries=None, pairs=None):
        self.queried.append(None if queries is None else len(queries))
        loss = self.recall(embeddings * self.scale, labels, queries, pairs)
        self.diagnostics = self.recall.diagnostics
        return loss


class WholeLoss(ScaledLoss):
    shares_queries = False
    accepts_virtual = False

    def forward(self, embeddings, labels):
        return super().forward(embeddings, labels)


class Notes(Callback):
    """Writes what each process logged and reduced to its own file."""

    def __init__(self, folder):
        self.folder, self.losses, self.recalls, self.reductions = folder, [], [], 0

    def on_train_start(self, trainer, pl_module):
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):
        self.reductions += 1
        return allreduce_hook(None, bucket)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        self.recalls.append(float(trainer.callback_metrics.get("train/recall@1", torch.nan)))

    def on_train_end(self, trainer, pl_module):
        notes = {"losses": self.losses, "recalls": self.recalls, "reductions": self.reductions}
        notes["queried"] = getattr(pl_module.loss, "queried", [])
        notes["buffers"] = {name: value.tolist() for name, value in pl_module.loss.named_buffers()}
        (self.folder / f"{trainer.world_size}_{trainer.global_rank}.json").write_text(json.dumps(notes))
        trainer.strategy.barrier()  # the notes of all processes are read as soon as the first has ended


def fit(folder, devices=1, strategy=None, loss=ScaledLoss, epochs=1, lr=1.0, labels=LABELS, net=Net, **kwargs):
    folder.mkdir(exist_ok=True)
    optimizer = partial(torch.optim.SGD, lr=lr)
    module = RetrievalModule(net(), loss(), chunk_size=3, optimizer=optimizer, **kwargs).double()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy or ("ddp_fork" if devices > 1 else "auto"),
        precision="64-true",
        max_epochs=epochs,
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Notes(folder)],
    )
    trainer.fit(module, datamodule=Vectors(labels))
    notes = [json.loads((folder / f"{devices}_{rank}.json").read_text()) for rank in range(devices)]
    return {name: p.detach() for name, p in module.named_parameters()}, notes


def assert_same(actual, expected, atol):
    assert (
        max((expected[name] - p).abs().max() for name, p in Net().double().named_parameters(prefix="embedder")) > 1e-3
    )
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("loss", [ScaledLoss, WholeLoss])
@pytest.mark.parametrize("mixup", [None, SimilarityMixup])
def test_processes_take_the_steps_of_one(tmp_path, devices, loss, mixup):
    settings = {"loss": loss, "mixup": None if mixup is None else mixup()}
    expected, (alone,) = fit(tmp_path, **settings)
    settings["mixup"] = None if mixup is None else mixup()
    actual, notes = fit(tmp_path, devices, **settings)
    assert_same(actual, expected, 1e-12)
    items = 16 if mixup is None else 16 + 4 * 6
    for rank, note in enumerate(notes):
        assert note["losses"] == notes[0]["losses"] == pytest.approx(alone["losses"], abs=1e-12)
        assert note["recalls"] == pytest.approx(alone["recalls"], abs=1e-6)
        assert note["reductions"] == 3  # one a step
        num_queries = [items // devices + (rank < items % devices)] * 3
        assert note["queried"] == ([None] * 3 if loss is WholeLoss else num_queries)


def pml_losses():
    return pytest.importorskip("pytorch_metric_learning.losses")  # a test tool


def other_loss(name):
    torch.manual_seed(1)  # proxies
    recall = losses.RecallAtKLoss(ks=(1, 4, 16), rank_temperature=0.1)
    return {
        "SmoothAP": lambda: losses.SmoothAPLoss(0.1),
        "SupRecall": lambda: losses.SupRecallAtKLoss(rank_temperature=0.1, delta=0.3),
        "Circle": lambda: losses.CircleLoss(0.3, 8),
        "CircleProxy": lambda: losses.CircleProxyLoss(19, 4, 0.3, 8),
        "UniLoss": lambda: losses.UniLoss(tau=5),
        "sum": lambda: losses.MultipleLosses(
            [recall, losses.NormalizedSoftmaxLoss(19, 4), losses.ProxyAnchorLoss(19, 4)]
        ),
        "memory": lambda: losses.CrossBatchMemory(losses.MultipleLosses([recall, losses.CircleLoss(0.3, 8)]), 40, 4),
        "MultiSimilarity": lambda: pml_losses().MultiSimilarityLoss(),
        "ProxyAnchor": lambda: pml_losses().ProxyAnchorLoss(12, 4),
    }[name]()


OTHERS = (
    "SmoothAP",
    "SupRecall",
    "Circle",
    "CircleProxy",
    "UniLoss",
    "sum",
    "memory",
    "MultiSimilarity",
    "ProxyAnchor",
)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mixup", [None, SimilarityMixup])
def test_other_losses_take_the_steps_of_one_process(tmp_path, name, mixup):
    runs = [
        fit(tmp_path, devices, loss=partial(other_loss, name), mixup=None if mixup is None else mixup(), lr=0.05)
        for devices in (1, 2)
    ]
    (expected, (alone,)), (actual, notes) = runs
    assert len(expected) > 4 or name not in ("CircleProxy", "sum", "ProxyAnchor")  # proxies are trained, too
    assert_same(actual, expected, 1e-12)
    for note in notes:
        assert note["losses"] == pytest.approx(alone["losses"], abs=1e-12)
        assert note["reductions"] == 3


@pytest.mark.parametrize("name", ["CircleProxy", "sum", "memory"])
def test_three_processes_train_proxies_and_remember_as_one(tmp_path, name):
    """Processes have 5, 5 and 6 items; some items have no positive in the batch, but one in the memory."""
    labels = LABELS.clone()
    labels[::7] = 100 + torch.arange(7) % 4
    states = [fit(tmp_path, devices, loss=partial(other_loss, name), labels=labels, lr=0.05) for devices in (1, 3)]
    (expected, (alone,)), (actual, notes) = states
    assert_same(actual, expected, 1e-12)
    for note in notes:
        assert note["losses"] == pytest.approx(alone["losses"], abs=1e-12)
        for key, value in alone["buffers"].items():  # known labels, remembered embeddings
            torch.testing.assert_close(torch.tensor(note["buffers"][key]), torch.tensor(value), atol=1e-12, rtol=0)
    assert (name == "memory") == ("memory" in alone["buffers"])


def test_twenty_steps_end_at_the_same_weights(tmp_path):
    expected, _ = fit(tmp_path, epochs=7, lr=0.1)  # 21
    actual, notes = fit(tmp_path, 2, epochs=7, lr=0.1)
    assert len(notes[0]["losses"]) == 21
    assert_same(actual, expected, 1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"find_unused_parameters": True},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    ],
)
def test_settings_of_ddp_change_nothing(tmp_path, settings):
    if "static_graph" in settings and torch.__version__ < "2.8":
        with pytest.raises(Exception, match="static_graph gives wrong gradients"):
            fit(tmp_path, 2, DDPStrategy(start_method="fork", **settings))
        return
    expected, _ = fit(tmp_path)
    actual, notes = fit(tmp_path, 2, DDPStrategy(start_method="fork", **settings))
    assert_same(actual, expected, 1e-12)
    assert notes[0]["reductions"] == 3


def test_accumulated_batches_on_processes_are_those_of_one(tmp_path):
    expected, _ = fit(tmp_path, accumulate_grad_batches=2)
    actual, _ = fit(tmp_path, 2, accumulate_grad_batches=2)
    assert_same(actual, expected, 1e-12)


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[3])
from test_distributed import *
if __name__ == "__main__":
    from pathlib import Path
    parameters, _ = fit(Path(sys.argv[2]), 2, sys.argv[1])
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 0 or sys.argv[1] != "ddp":
        torch.save(parameters, Path(sys.argv[2]) / "parameters.pt")
"""


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_launchers(tmp_path, strategy, request):
    (tmp_path / "script.py").write_text(SCRIPT)
    here = str(request.path.parent)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), strategy, str(tmp_path / "notes"), here]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    expected, _ = fit(tmp_path / "one")
    assert_same(torch.load(tmp_path / "notes" / "parameters.pt"), expected, 1e-12)


def test_the_same_batch_on_all_processes_is_refused():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=BatchSampler(SequentialSampler(LABELS), 16, False))
    module = RetrievalModule(Net(), RecallAtKLoss())
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", use_distributed_sampler=False, max_steps=1, **settings
    )
    with pytest.raises(Exception, match="All 2 processes received the same batch"):
        trainer.fit(module, loader)


def test_a_plain_loader_with_the_sampler_gives_each_process_its_part(tmp_path):
    sampler = ClassBalancedBatchSampler(LABELS, 16, 4)
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=sampler)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork", "max_epochs": 1}

    class Seen(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            path = tmp_path / f"{trainer.global_rank}.json"
            batches = json.loads(path.read_text()) if path.exists() else []
            path.write_text(json.dumps([*batches, batch[1].tolist()]))

    Trainer(**settings, use_distributed_sampler=False, callbacks=[Seen()]).fit(
        RetrievalModule(Net(), RecallAtKLoss()), loader
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for a, b in zip(first, second, strict=True):
        assert len(a) == len(b) == 8
        assert not set(a) & set(b)
    with pytest.raises(Exception, match="use_distributed_sampler=False"):  # Lightning would break it up
        Trainer(**settings).fit(RetrievalModule(Net(), RecallAtKLoss()), loader)


def test_strategies_that_shard_parameters_are_refused():
    module = RetrievalModule(Net(), RecallAtKLoss())
    module.trainer = type("Fake", (), {"strategy": FSDPStrategy()})()
    with pytest.raises(ValueError, match=r'FSDPStrategy shards the parameters.* use strategy="ddp"'):
        module.setup("fit")


@pytest.mark.parametrize(("unfreeze_epoch", "reductions"), [(1, 3), (None, 6)])
def test_a_frozen_phase_takes_the_steps_of_one_process(tmp_path, unfreeze_epoch, reductions):
    """Without find_unused_parameters: the frozen phase of three steps averages its gradients itself."""
    settings = {"net": WithBackbone, "epochs": 2, "unfreeze_epoch": unfreeze_epoch}
    expected, _ = fit(tmp_path, **settings)
    actual, notes = fit(tmp_path, 2, **settings)
    assert_same(actual, expected, 1e-11)  # rounding of small gradients, which the steps of Adam magnify: 1.2e-12
    assert [note["reductions"] for note in notes] == [reductions] * 2
    moved = (expected["embedder.layers.0.weight"] - Net().double().layers[0].weight).abs().max() > 1e-3
    assert moved == (unfreeze_epoch == 1)
