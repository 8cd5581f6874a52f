"""A training that is killed and resumed ends with the weights of one that was not, to the bit."""

import multiprocessing
import os
import random
import signal
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningDataModule, Trainer, callbacks, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_recall import (
    ClassBalancedBatchSampler,
    RecallAtKLoss,
    RetrievalEvaluation,
    RetrievalModule,
    SimilarityMixup,
    losses,
)
from lightning_recall.cli import main
from lightning_recall.data import ChunkLoader

LABELS = torch.arange(48) // 4
IMAGES = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))
STEPS = 12  # four epochs of three


class Augmented(Dataset):
    """Noise from all three generators that augmentations draw from."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, row):
        noise = torch.randn(6) + random.random() + float(np.random.rand())  # noqa: NPY002  # global on purpose
        return IMAGES[row] + noise, LABELS[row]


class Data(LightningDataModule):
    def __init__(self, num_workers, loaded=3):
        super().__init__()
        self.num_workers, self.loaded = num_workers, loaded

    def train_dataloader(self):
        sampler = ClassBalancedBatchSampler(LABELS, 16, 4)
        return ChunkLoader(Augmented(), sampler, self.loaded, num_workers=self.num_workers)

    def val_dataloader(self):
        return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=12, generator=torch.Generator())

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Noise in the training process, as augmentation on the device draws it."""
        if not self.trainer.training:
            return batch
        noise = random.random() + float(np.random.rand())  # noqa: NPY002  # global on purpose
        return [(images + torch.randn_like(images) + noise, labels) for images, labels in batch]


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))


class End(Callback):
    """Kills the process with a signal after some steps; without one, saves the final weights."""

    def __init__(self, folder, after=None, how=None):
        self.folder, self.after, self.how = folder, after, how

    def on_train_start(self, trainer, pl_module):
        seed_everything(
            trainer.global_rank, verbose=False
        )  # processes draw different numbers; resuming restores each process's own

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.after:
            os.kill(os.getpid(), self.how)

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save(pl_module.state_dict(), self.folder / "final.pt")


def train(
    folder,
    end=(),
    ckpt_path=None,
    devices=1,
    num_workers=0,
    checkpoint=None,
    validate=False,
    epochs=4,
    loaded=3,
    **kwargs,
):
    torch.set_num_threads(1)  # a fork finds none of the threads that its parent has started
    torch.cuda._is_in_bad_fork = lambda: False  # torch.compile has looked for CUDA in the parent; this is a CPU's
    warnings.simplefilter("ignore")  # of folders that are not empty, and the like
    seed_everything(5, verbose=False)
    settings = {
        "lr_scheduler": lambda optimizer: OneCycleLR(optimizer, 0.05, total_steps=STEPS),
        "lr_interval": "step",
        "mixup": SimilarityMixup(),
        "chunk_size": 3,
        **kwargs,
    }
    recall = RecallAtKLoss((1, 2), rank_temperature=0.1)
    loss = settings.pop("loss", lambda recall: recall)(recall)
    module = RetrievalModule(
        Net(),
        loss,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        **settings,
    )
    saving = checkpoint or ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    used = [saving, End(folder, *end)]
    if signal.SIGTERM in end or ckpt_path == folder / "exception.ckpt":
        used.append(OnExceptionCheckpoint(folder, "exception"))
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_epochs=epochs,
        default_root_dir=folder,
        limit_val_batches=1.0 if validate else 0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*used, RetrievalEvaluation(ks=(1,))] if validate else used,
    )
    trainer.fit(module, datamodule=Data(num_workers, loaded), ckpt_path=ckpt_path)


def in_a_process(folder, timeout=60, **kwargs):
    """Runs `train` in a new process, which may be killed; returns its exit code, None after `timeout` seconds."""
    folder.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder,), kwargs=kwargs)
    process.start()
    process.join(timeout)
    code = process.exitcode
    process.kill()
    return code


def assert_same_end(first, second):
    expected, actual = (torch.load(folder / "final.pt") for folder in (first, second))
    assert len(expected) > 6
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def with_memory(recall):
    """A loss with three kinds of state: proxies and their labels, embeddings remembered, anchors drawn."""
    parts = losses.MultipleLosses([recall, losses.UniLoss(tau=5), losses.NormalizedSoftmaxLoss(12, 4)])
    return losses.CrossBatchMemory(parts, 40, 4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_workers": 2}, {"devices": 2}, {"devices": 2, "num_workers": 2}, {"loss": with_memory, "devices": 2}],
)
def test_killed_in_the_middle_of_an_epoch(tmp_path, settings):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_a_process(whole, **settings) == 0
    assert in_a_process(killed, end=(5, signal.SIGKILL), **settings) != 0
    assert not (killed / "final.pt").exists()
    assert {path.name for path in killed.glob("*.ckpt")} == {"step=2.ckpt", "step=4.ckpt"}  # epochs have 3 steps
    assert in_a_process(killed, ckpt_path=killed / "step=4.ckpt", **settings) == 0
    assert_same_end(whole, killed)


def test_terminated_after_a_save(tmp_path):
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    assert in_a_process(whole) == 0
    in_a_process(ended, end=(5, signal.SIGTERM))
    assert not (ended / "final.pt").exists()
    assert torch.load(ended / "exception.ckpt")["global_step"] == 5
    assert in_a_process(ended, ckpt_path=ended / "exception.ckpt") == 0
    assert_same_end(whole, ended)


def test_a_measured_chunk_size_is_restored(tmp_path, monkeypatch):
    whole, killed, settings = tmp_path / "whole", tmp_path / "killed", {"chunk_size": "auto", "loaded": 8}
    monkeypatch.setattr("lightning_recall.modules.retrieval.auto_chunk_size", lambda *_: 4)
    assert in_a_process(whole, **settings) == 0
    assert in_a_process(killed, end=(5, signal.SIGKILL), **settings) == -signal.SIGKILL
    monkeypatch.setattr("lightning_recall.modules.retrieval.auto_chunk_size", lambda *_: 8)  # the machine is busier
    assert in_a_process(killed, ckpt_path=killed / "step=4.ckpt", **settings) == 0
    assert_same_end(whole, killed)


def stepwise(optimizer):
    return StepLR(optimizer, 1, gamma=0.5)


def plateau(optimizer):
    return ReduceLROnPlateau(optimizer, "val/recall@1", mode="max", threshold=9, patience=0)


@pytest.mark.parametrize(
    ("schedule", "when"),
    [
        (stepwise, {"every_n_epochs": 1}),
        (stepwise, {"monitor": "val/recall@1", "mode": "max"}),
        (stepwise, {"every_n_train_steps": 3}),
        (plateau, {"every_n_epochs": 1}),
        (plateau, {"monitor": "val/recall@1", "mode": "max"}),
        # every_n_train_steps=3 saves before the validation, which Lightning does not make up for: a plateau misses it
    ],
)
def test_resumed_at_the_end_of_an_epoch(tmp_path, schedule, when):
    def checkpoint(folder):
        return ModelCheckpoint(folder, "{step}", save_top_k=-1, **when)

    settings = {"lr_scheduler": schedule, "lr_interval": "epoch", "validate": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_a_process(whole, checkpoint=checkpoint(whole), **settings) == 0
    assert in_a_process(killed, checkpoint=checkpoint(killed), end=(7, signal.SIGKILL), **settings) != 0
    assert in_a_process(killed, ckpt_path=killed / "step=6.ckpt", checkpoint=checkpoint(killed), **settings) == 0
    assert_same_end(whole, killed)


def test_accumulated_gradients_are_restored(tmp_path):
    settings = {"accumulate_grad_batches": 2, "lr_scheduler": None, "mixup": None}
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    assert in_a_process(whole, **settings) == 0

    class AfterFourBatches(End):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (
                trainer.fit_loop.total_batch_idx == 3
            ):  # the second batch of an epoch makes a step, the fourth is accumulated
                trainer.save_checkpoint(ended / "accumulated.ckpt")

    ended.mkdir()
    assert in_a_process(ended, checkpoint=AfterFourBatches(ended), **settings) == 0
    (progress,) = torch.load(ended / "accumulated.ckpt")["optimizer_progress"].values()
    assert progress["accumulated_batches"] == 1
    assert in_a_process(ended, ckpt_path=ended / "accumulated.ckpt", **settings) == 0
    assert_same_end(whole, ended)


class SavesAtTheEnd(End):
    """Saves after the last batch, at the end of the last epoch, and after the training."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == 5:
            trainer.save_checkpoint(self.folder / "batch.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.folder / "epoch.ckpt")

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / "end.ckpt")
        super().on_train_end(trainer, pl_module)


@pytest.mark.parametrize(("schedule", "validate"), [(stepwise, True), (None, False)])
def test_resumed_at_the_end_of_a_training_with_more_epochs(tmp_path, schedule, validate):
    settings = {"validate": validate, "lr_scheduler": schedule, "lr_interval": "epoch"}
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    assert in_a_process(whole, **settings) == 0
    assert in_a_process(ended, epochs=2, checkpoint=SavesAtTheEnd(ended), **settings) == 0
    for name in ("batch", "epoch", "end"):
        assert in_a_process(ended, ckpt_path=ended / f"{name}.ckpt", **settings) == 0
        assert_same_end(whole, ended)
    (ended / "final.pt").unlink()
    assert in_a_process(ended, ckpt_path=ended / "end.ckpt", epochs=2, **settings) == 0
    assert not (ended / "final.pt").exists()  # no training starts where nothing is left to do


PLAIN = {
    "class_path": "lightning_recall.ImageEmbedder",
    "init_args": {"backbone": "test_efficientnet", "pretrained": False, "embedding_dim": 16},
}
LORA = {
    "class_path": "lightning_recall.models.LoRAEmbedder",
    "init_args": {"embedder": PLAIN, "rank": 2, "dropout": 0.2},
}


def fine_tuning_config(folder, glyph_folder, embedder):
    """A timm backbone with random weights, and every option of fine-tuning: four epochs of four batches, two steps."""
    model = {
        "embedder": embedder,
        "loss": {
            "class_path": "lightning_recall.losses.ProxyAnchorLoss",
            "init_args": {"num_classes": 300, "embedding_dim": 16},
        },
        "mixup": {"class_path": "lightning_recall.SimilarityMixup"},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "weight_decay": 0.1}},
        "lr_scheduler": {"class_path": "lightning_recall.optimization.WarmupCosineLR", "init_args": {"warmup": 0.25}},
        "layer_decay": 0.5,
        "head_lr": 0.01,
        "loss_lr": 0.02,
        "unfreeze_epoch": 1,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
        "chunk_size": 8,
    }
    saving = {"dirpath": str(folder), "filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
    names = [f"pytorch_lightning.callbacks.{name}" for name in ("EMAWeightAveraging", "ModelCheckpoint")]
    names = ["lightning_recall.RetrievalEvaluation", *names]
    settings = ({"ks": [1]}, {"decay": 0.7, "update_every_n_steps": 2}, saving)
    used = [
        {"class_path": name, "init_args": values}
        for name, values in zip(names, settings, strict=True)
        if hasattr(callbacks, "EMAWeightAveraging") or "EMA" not in name
    ]
    config = {
        "seed_everything": 3,
        "model": {"class_path": "lightning_recall.RetrievalModule", "init_args": model},
        "data": {
            "class_path": "lightning_recall.datamodules.GlyphsDataModule",
            "init_args": {"root": str(glyph_folder), "batch_size": 16, "samples_per_class": 4, "val_classes": 0.1},
        },
        "trainer": {
            "max_epochs": 4,
            "limit_train_batches": 4,
            "limit_val_batches": 1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": used,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit_by_config(path, *more):
    """The state of the module after `lightning-recall fit`, and its optimizer."""
    found = {}

    class Notes(Callback):
        def on_fit_end(self, trainer, pl_module):
            found["state"] = {name: value.clone() for name, value in pl_module.state_dict().items()}
            found["groups"] = trainer.optimizers[0].param_groups
            found["scheduler"] = trainer.lr_scheduler_configs[0].scheduler

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        patch.setattr("sys.argv", ["lightning-recall"])
        configure = RetrievalModule.configure_callbacks
        patch.setattr(RetrievalModule, "configure_callbacks", lambda module: [*configure(module), Notes()])
        main(["fit", "--config", str(path), *more])
    return found


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_fine_tuning_by_config_resumes_in_each_phase(tmp_path, glyph_folder, capfd):
    path = fine_tuning_config(tmp_path, glyph_folder, PLAIN)
    whole = fit_by_config(path)
    table = capfd.readouterr().out
    assert "frozen before epoch 1" in table
    assert "SimilarityMixup" in table
    assert "head 0.01, loss 0.02" in table
    rates = {round(group["initial_lr"], 9) for group in whole["groups"]}
    assert {0.01, 0.02, 0.001, 0.0005} < rates
    assert {group["weight_decay"] for group in whole["groups"]} == {0, 0.1}
    assert whole["scheduler"].total_steps == whole["scheduler"].last_epoch == 8
    saved = {step: torch.load(tmp_path / f"step={step}.ckpt", weights_only=False) for step in (1, 2, 8)}
    stem = "embedder.backbone.conv_stem.weight"
    current = [checkpoint.get("current_model_state", checkpoint["state_dict"])[stem] for checkpoint in saved.values()]
    assert torch.equal(current[0], current[1])  # in the frozen phase
    assert not torch.equal(current[1], current[2])
    if "current_model_state" in saved[8]:
        assert not torch.equal(saved[8]["state_dict"][stem], saved[8]["current_model_state"][stem])
        assert torch.equal(saved[8]["state_dict"][stem], whole["state"][stem])
    for step in (1, 5):
        resumed = fit_by_config(path, "--ckpt_path", str(tmp_path / f"step={step}.ckpt"))
        different = [name for name in whole["state"] if not torch.equal(resumed["state"][name], whole["state"][name])]
        assert different == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_lora_by_config_resumes(tmp_path, glyph_folder):
    pytest.importorskip("peft")  # an extra
    path = fine_tuning_config(tmp_path, glyph_folder, LORA)
    whole = fit_by_config(path)
    saved = [torch.load(tmp_path / f"step={step}.ckpt", weights_only=False) for step in (1, 2, 8)]
    states = [checkpoint.get("current_model_state", checkpoint["state_dict"]) for checkpoint in saved]
    matrices = {name for name in states[0] if ".lora_A." in name or ".lora_B." in name}
    changed = [{name for name in a if not torch.equal(a[name], b[name])} for a, b in pairwise(states)]
    assert matrices
    assert not changed[0] & matrices  # in the frozen phase
    assert {name for name in changed[1] if "backbone" in name} >= matrices
    assert not {name for name in changed[1] if name.endswith("base_layer.weight")}
    resumed = fit_by_config(path, "--ckpt_path", str(tmp_path / "step=5.ckpt"))
    different = [name for name in whole["state"] if not torch.equal(resumed["state"][name], whole["state"][name])]
    assert different == []
