from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, Trainer, callbacks
from small_trainings import make_module
from torch import nn
from torch.optim import SGD

from lightning_recall import RecallAtKLoss, RetrievalModule, SimilarityMixup
from lightning_recall.losses import NormalizedSoftmaxLoss
from lightning_recall.optimization.step_memory import step_memory


def module(chunk_size):
    net = nn.Sequential(nn.Linear(6, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 4))
    module = RetrievalModule(net, RecallAtKLoss(), chunk_size=chunk_size)
    module.trainer = Trainer(accelerator="cpu", barebones=True)
    return module


def pair(size):
    return torch.randn(size, 6), torch.arange(size) % 3


@pytest.mark.parametrize(
    ("chunk_size", "batch", "chunks"),
    [
        (10, pair(24), "3 of at most 10 images"),
        (100, pair(6), "1 of at most 6 images"),
        (4, [pair(10), pair(3)], "4 of at most 4 images"),
    ],
)
def test_a_batch_is_described_with_its_chunks_and_the_memory_of_one(chunk_size, batch, chunks):
    described = module(chunk_size)
    rows = described.training_summary(batch)
    assert list(rows) == ["embedder", "loss", "chunks", "memory"]
    assert rows["embedder"] == type(described.embedder).__name__
    assert (rows["loss"], rows["chunks"]) == ("RecallAtKLoss", chunks)
    inputs = batch[0][0] if isinstance(batch, list) else batch[0]
    needed = step_memory(described.trainer, described, inputs, int(chunks.split()[4]))
    activations, weights = (f"{part / 2**20:,.0f}" for part in (needed.activations, needed.parameters_and_state))
    assert rows["memory"].startswith(f"about {sum(needed) / 2**20:,.0f} MiB: {weights} for weights")
    assert rows["memory"].endswith(f" {activations} for a chunk")


def test_a_chunk_size_that_will_be_measured_is_described_as_such():
    assert module("auto").training_summary(pair(24)) == {
        "embedder": "Sequential",
        "loss": "RecallAtKLoss",
        "chunk_size": "auto: measured at the first step",
    }


def test_other_batches_are_described_as_far_as_possible():
    described = module(4)
    others = described.training_summary({"images": torch.randn(4, 6)})
    assert others == {"embedder": "Sequential", "loss": "RecallAtKLoss"}
    texts = described.training_summary((["a", "b"], torch.arange(2)))
    assert texts == {"embedder": "Sequential", "loss": "RecallAtKLoss", "chunks": "1 of at most 2 images"}


def test_several_processes_each_have_their_chunks():
    described = module(4)
    described.trainer = SimpleNamespace(world_size=2)
    rows = described.training_summary((["a", "b"], torch.arange(2)))
    assert rows["chunks"] == "1 of at most 2 images on each process"


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, {"learning rate": "0.001"}),
        (
            {"mixup": SimilarityMixup(), "head_lr": 0.1, "layer_decay": 0.5, "unfreeze_epoch": 2},
            {
                "mixup": "SimilarityMixup",
                "learning rate": "backbone 3.13e-05 to 0.001, head 0.1, loss 0.001",
                "backbone": "frozen before epoch 2, from 0",
            },
        ),
        ({"unfreeze_epoch": None}, {"learning rate": "0.001", "backbone": "frozen"}),
    ],
)
def test_fine_tuning_is_described(settings, rows):
    loss = NormalizedSoftmaxLoss(3, 8)
    described = make_module(loss=loss, optimizer=lambda groups: SGD(groups, lr=0.001), **settings)
    described.trainer = Trainer(accelerator="cpu", barebones=True)
    described.trainer.strategy.optimizers = described.configure_optimizers()[0]
    found = described.training_summary((["a", "b"], torch.arange(2)))
    assert {name: found[name] for name in found if name not in ("embedder", "loss", "chunks", "memory")} == rows


class WeightAveraging(getattr(callbacks, "EMAWeightAveraging", Callback)):
    pass


def test_averaged_weights_are_described():
    described = module(4)
    described.trainer.callbacks.append(WeightAveraging())
    rows = described.training_summary((["a", "b"], torch.arange(2)))
    assert rows["weights"] == "averaged by WeightAveraging, for validation and checkpoints"
