import pytest
import torch
from pytorch_lightning import Callback, callbacks
from small_trainings import fit, make_module, timm_embedder
from torch.optim import AdamW

from lightning_recall import RecallAtKLoss, RetrievalEvaluation, RetrievalModule, SimilarityMixup, losses
from lightning_recall.callbacks import InterruptCheckpoint
from lightning_recall.optimization.weight_averaging import is_averaged

DECAY = 0.6


def ema(**kwargs):
    return callbacks.EMAWeightAveraging(decay=DECAY, **kwargs)


def memory(recall):
    """A loss with proxies, labels, counters and remembered embeddings."""
    return losses.CrossBatchMemory(losses.MultipleLosses([recall, losses.NormalizedSoftmaxLoss(8, 8)]), 12, 8)


def new_module(loss=None, **kwargs):
    torch.manual_seed(0)
    recall = RecallAtKLoss((1, 2), rank_temperature=0.1)
    settings = {"optimizer": lambda groups: AdamW(groups, lr=0.01), "mixup": SimilarityMixup(), **kwargs}
    return make_module(timm_embedder(), loss(recall) if loss else recall, **settings).double()


class Steps(Callback):
    """Averages by hand; saves in some steps, before other callbacks know of them; notes what validation used."""

    def __init__(self, folder=None, save_after=(), every=1):
        self.folder, self.save_after, self.every = folder, save_after, every
        self.average, self.validated, self.seen = None, [], 0

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            torch.manual_seed(4)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > self.seen and (trainer.global_step - 1) % self.every == 0:
            now = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
            now |= {
                name: b.clone() for name, b in pl_module.embedder.named_buffers("embedder") if b.is_floating_point()
            }
            if self.average is None:
                self.average = now
            self.average = {name: DECAY * self.average[name] + (1 - DECAY) * now[name] for name in now}
        self.seen = trainer.global_step
        if trainer.fit_loop.total_batch_idx + 1 in self.save_after:
            trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.total_batch_idx + 1}.ckpt")

    def on_validation_start(self, trainer, pl_module):
        self.expected = None if self.average is None else dict(self.average)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.expected is not None:
            state = pl_module.state_dict()
            self.validated.append(max((state[name] - self.expected[name]).abs().max() for name in self.expected))


@pytest.mark.parametrize(
    ("every", "settings", "ema_first"),
    [(1, {}, True), (2, {"accumulate_grad_batches": 2}, False), (2, {"unfreeze_epoch": 1}, False)],
)
def test_validation_and_checkpoints_use_the_average(tmp_path, every, settings, ema_first):
    module, steps = new_module(**settings), Steps(tmp_path, (6,), every)
    others = [RetrievalEvaluation(ks=(1,)), steps]
    averaging = ema(update_every_n_steps=every)
    more = [averaging, *others] if ema_first else [*others, averaging]
    length = {"limit_val_batches": 1.0, "val_check_interval": 1, "max_epochs": 3, "precision": "64-true"}
    trainer = fit(module, callbacks=more, **length)
    assert len(steps.validated) >= 6
    assert max(steps.validated) < 1e-12
    saved = RetrievalModule.load_from_checkpoint(
        tmp_path / "6.ckpt",
        embedder=timm_embedder().double(),
        loss=RecallAtKLoss((1, 2)),
        mixup=SimilarityMixup(),
        weights_only=False,
    )
    state, current = saved.state_dict(), torch.load(tmp_path / "6.ckpt", weights_only=False)["current_model_state"]
    assert max((state[name] - steps.average[name]).abs().max() for name in steps.average) < 1e-12
    assert max((state[name] - current[name]).abs().max() for name in steps.average) > 1e-3
    tested = trainer.validate(module, trainer.datamodule, ckpt_path=str(tmp_path / "6.ckpt"), verbose=False)
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in steps.average)
    assert tested[0]["val/recall@1"] == trainer.callback_metrics["val/recall@1"]


@pytest.mark.parametrize(
    ("settings", "averaging", "saves"),
    [
        ({"loss": memory, "accumulate_grad_batches": 2}, {"update_every_n_steps": 2}, (1, 3, 4)),
        # Lightning does not repeat the end of an epoch for a checkpoint of its last batch: the average lacks it
        ({"unfreeze_epoch": 1}, {"update_starting_at_epoch": 1}, (1, 3)),
    ],
)
def test_resuming_continues_training_and_average(tmp_path, settings, averaging, saves):
    length = {"max_epochs": 3, "limit_val_batches": 1.0}
    steps = Steps(tmp_path, saves)
    whole = new_module(**settings)
    fit(whole, callbacks=[InterruptCheckpoint(), steps, ema(**averaging)], **length)
    for saved in saves:
        resumed = new_module(**settings)
        fit(resumed, tmp_path / f"{saved}.ckpt", [ema(**averaging), Steps()], **length)
        expected, actual = whole.state_dict(), resumed.state_dict()
        different = [name for name in expected if not torch.equal(actual[name], expected[name])]
        assert (saved, different) == (saved, [])


def test_only_floating_point_values_of_the_embedder_and_parameters_are_averaged(tmp_path):
    module = new_module(memory)
    fit(module, callbacks=[ema(), Steps(tmp_path, (3,))], max_epochs=2)
    checkpoint = torch.load(tmp_path / "3.ckpt", weights_only=False)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    different = {name for name in averaged if not torch.equal(averaged[name], current[name])}
    parameters = {name for name, _ in module.named_parameters()}
    assert "mixup._extra_state" in averaged
    assert {name for name in different if name not in parameters} == {
        name for name, b in module.embedder.named_buffers("embedder") if "running" in name
    }
    assert any(name.startswith("loss.") for name in different & parameters)
    assert any(name.endswith("known_labels") and averaged[name].any() for name in averaged)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("embedder.backbone.bn1.running_mean", torch.zeros(2), True),
        ("embedder.backbone.bn1.num_batches_tracked", torch.zeros((), dtype=torch.long), False),
        ("loss.memory", torch.zeros(2), False),
        ("mixup.memory", torch.zeros(2), False),
        ("embedder._extra_state", {"a": 1}, False),
    ],
)
def test_which_entries_are_averaged(name, value, expected):
    assert is_averaged(name, value) is expected


def test_an_averaged_training_resumes_with_the_callback_only(tmp_path):
    fit(new_module(), callbacks=[ema(), Steps(tmp_path, (1,))])
    with pytest.raises(ValueError, match="The checkpoint was trained with EMAWeightAveraging or WeightAveraging"):
        fit(new_module(), tmp_path / "1.ckpt")


def test_a_checkpoint_of_weights_only_holds_the_average(tmp_path):
    class SavesTwice(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / "whole.ckpt")
            trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    fit(new_module(memory), callbacks=[ema(), SavesTwice()], max_epochs=1, limit_val_batches=0, precision="64-true")
    whole, weights = (torch.load(tmp_path / name, weights_only=False) for name in ("whole.ckpt", "weights.ckpt"))
    assert "optimizer_states" not in weights
    assert weights["state_dict"].keys() == whole["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, weights["state_dict"][name]), name
    name = "embedder.projection.1.weight"
    assert not torch.equal(weights["state_dict"][name], whole["current_model_state"][name])
