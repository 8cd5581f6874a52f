"""A resumed training ends with the weights of one that was not interrupted, to the bit."""

from functools import partial

import pytest
import torch
from adaptation_training import (
    NOISE,
    K,
    assert_equal_weights,
    fit,
    four_networks,
    three_networks,
    weights,
)
from pytorch_lightning import Callback
from torch import nn

from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.adaptation.dm_ada import DMADAModule
from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.network_optimizers import NetworkOptimizer
from lightning_recall.adaptation.source_only import SourceOnlyModule

ADAM = partial(torch.optim.Adam, lr=0.01)


def source_only():
    return SourceOnlyModule(*three_networks(dropout=0.5)[:2], K, optimizer=ADAM)


def dann():
    return DANNModule(*three_networks(dropout=0.5), K, DomainMixup(), optimizer=ADAM, accumulate_grad_batches=2)


def dm_ada():
    """With BatchNorm, dropout, accumulation and cadence."""
    encoder, classifier, generator, discriminator = four_networks(dropout=0.5)
    generator.layers.insert(1, nn.BatchNorm1d(48))
    discriminator.layers.insert(2, nn.BatchNorm1d(5))
    optimizers = {
        "encoder": NetworkOptimizer(ADAM, accumulate_grad_batches=2),
        "classifier": NetworkOptimizer(ADAM, every_n_batches=2),
    }
    return DMADAModule(encoder, classifier, generator, discriminator, K, noise_dim=NOISE, optimizers=optimizers)


class Saves(Callback):
    """Saves a checkpoint after some batches, or at the end of "epoch N"."""

    def __init__(self, path, after):
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.after:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.after == f"epoch {trainer.current_epoch}":
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("make", [source_only, dann, dm_ada])
@pytest.mark.parametrize("after", [2, 3, 5, "epoch 0"])
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(make, after, precision, tmp_path):
    path = tmp_path / "middle.ckpt"
    whole = make()
    fit(whole, callbacks=[Saves(path, after)], precision=precision)
    resumed = make()
    torch.manual_seed(99)  # dropout would differ
    trainer = fit(resumed, path, precision=precision)
    assert trainer.fit_loop.total_batch_idx == 5
    assert_equal_weights(resumed, weights(whole))


@pytest.mark.parametrize("make", [dann, dm_ada])
def test_two_processes_resume_too(make, tmp_path):
    path, parallel = tmp_path / "middle.ckpt", {"devices": 2, "strategy": "ddp_fork"}
    whole, resumed = make(), make()
    fit(whole, callbacks=[Saves(path, 2)], **parallel)
    torch.manual_seed(99)
    fit(resumed, path, **parallel)
    assert_equal_weights(resumed, weights(whole))
