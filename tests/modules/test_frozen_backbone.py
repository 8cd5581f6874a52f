import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import BackboneFinetuning
from pytorch_lightning.strategies import DDPStrategy
from small_trainings import IMAGES, LABELS, Wrapper, fit, make_module, timm_embedder
from torch import nn
from torch.optim import SGD

from lightning_recall.losses import NormalizedSoftmaxLoss


class Records(Callback):
    """Backbone parameters, buffers and modes in each epoch; forward passes of the backbone."""

    def __init__(self):
        self.epochs, self.modes, self.needs_grad, self.passes = [], [], [], 0

    def on_train_start(self, trainer, pl_module):
        pl_module.backbone.register_forward_hook(self.count)
        self.epochs.append(self.state(pl_module))

    def count(self, backbone, inputs, output):
        if backbone.training or not torch.is_inference_mode_enabled():
            self.passes += 1
        self.needs_grad.append(output.requires_grad)
        self.modes.append(any(module.training for module in backbone.modules()))

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(self.state(pl_module))

    @staticmethod
    def state(pl_module):
        return {name: value.clone() for name, value in pl_module.state_dict().items()}


def sgd(groups):
    return SGD(groups, lr=0.1, weight_decay=0.1, momentum=0.5)


def changed(before, after, prefix):
    names = [name for name in before if name.startswith(prefix) and before[name].is_floating_point()]
    return {name for name in names if not torch.equal(before[name], after[name])}


def test_the_backbone_rests_until_its_epoch():
    records = Records()
    module = make_module(optimizer=sgd, unfreeze_epoch=2, keep_chunks=1)
    fit(module, callbacks=[records], max_epochs=3, limit_val_batches=1)
    start, first, second, third = records.epochs
    backbone = "embedder.backbone."
    assert changed(start, second, backbone) == set()  # nor its BatchNorm statistics
    assert len(changed(second, third, backbone)) == sum(
        key.startswith(backbone) for key in start if "num_batches" not in key
    )
    assert "embedder.projection.1.weight" in changed(start, first, "embedder.projection")
    assert all(p.requires_grad for p in module.parameters())
    # two batches an epoch, of two chunks; a trained chunk is recomputed unless it is the last
    training = [grad for grad, mode in zip(records.needs_grad, records.modes, strict=True)]
    assert training.count(True) > 0
    frozen_passes, trained_passes = 2 * 2 * 2, 2 * 3
    validation_passes = 3  # one batch each epoch
    assert len(records.modes) == frozen_passes + trained_passes + validation_passes
    assert sum(records.modes) == trained_passes


def test_none_keeps_it_frozen():
    records = Records()
    module = make_module(optimizer=sgd, unfreeze_epoch=None)
    trainer = fit(module, callbacks=[records], max_epochs=2)
    assert changed(records.epochs[0], records.epochs[-1], "embedder.backbone.") == set()
    assert changed(records.epochs[0], records.epochs[-1], "embedder.") != set()
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in module.backbone.parameters()}
    module.frozen_backbone.unfreeze_epoch = 0
    fit(module)  # a later training may train it
    assert all(p.requires_grad for p in module.backbone.parameters())
    assert module.backbone.training


def test_a_frozen_step_gives_the_head_the_gradient_of_a_whole_step():
    def gradient(unfreeze_epoch):
        module = make_module(timm_embedder().double(), optimizer=sgd, unfreeze_epoch=unfreeze_epoch).double()
        module.backbone.eval()  # BatchNorm and dropout as in a frozen phase
        module.embedder.freeze_batch_norm = True
        gradients = {}

        class Gradients(Callback):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
                gradients.update(found)

        torch.manual_seed(1)
        fit(module, callbacks=[Gradients()], max_epochs=2, precision="64-true", max_steps=1)
        return gradients

    whole, frozen = gradient(0), gradient(1)
    names = [name for name in frozen if "projection" in name]
    assert len(names) == 4
    assert not any("backbone" in name for name in frozen)
    for name in names:
        torch.testing.assert_close(frozen[name], whole[name], atol=1e-12, rtol=0)


class WithHead(nn.Module):
    """An embedder whose head is known: the rest, here a pooling with a parameter, is frozen with the backbone."""

    def __init__(self):
        super().__init__()
        inner = timm_embedder()
        self.backbone, self.head = inner.backbone, inner.projection
        self.pooling = nn.Sequential(inner.pooling, nn.LayerNorm(inner.num_features))

    def forward(self, images):
        return nn.functional.normalize(self.head(self.pooling(self.backbone(images))), dim=1)


def test_with_a_head_all_but_the_head_is_frozen():
    records = Records()
    module = make_module(WithHead(), optimizer=sgd, unfreeze_epoch=1)
    fit(module, callbacks=[records], max_epochs=2)
    start, first, second = records.epochs
    assert changed(start, first, "embedder.") == changed(start, first, "embedder.head.") != set()
    assert "embedder.pooling.1.weight" in changed(first, second, "embedder.")


def test_parameters_that_were_frozen_before_stay_frozen():
    module = make_module(optimizer=sgd, unfreeze_epoch=1)
    module.backbone.conv_stem.requires_grad_(False)
    fit(module, max_epochs=2)
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == [
        "embedder.backbone.conv_stem.weight"
    ]


def test_frozen_batch_norm_stays_in_evaluation_mode():
    module = make_module(optimizer=sgd, unfreeze_epoch=1)
    module.embedder.freeze_batch_norm = True
    records = Records()
    fit(module, callbacks=[records], max_epochs=2)
    assert not any(m.training for m in module.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert module.backbone.training
    assert torch.equal(records.epochs[0]["embedder.backbone.bn1.running_mean"], module.backbone.bn1.running_mean)


@pytest.mark.parametrize(
    ("unfreeze_epoch", "message"),
    [
        (3, "unfreeze_epoch=3 is beyond the training of 3 epochs, counted from 0: set it below 3"),
        (-1, "unfreeze_epoch must be at least 0, got -1"),
        (1.5, "unfreeze_epoch must be an integer, at least 0, got 1.5"),
    ],
)
def test_an_epoch_out_of_range_raises(unfreeze_epoch, message):
    with pytest.raises(ValueError, match=message):
        fit(make_module(unfreeze_epoch=unfreeze_epoch), max_epochs=3)


def test_what_cannot_be_frozen_raises():
    with pytest.raises(ValueError, match="unfreeze_epoch=1 needs an embedder with an attribute `backbone`, which Flat"):
        fit(make_module(type("Flat", (nn.Flatten,), {})(), unfreeze_epoch=1), max_epochs=2)
    with pytest.raises(ValueError, match="BackboneFinetuning and unfreeze_epoch=1 both freeze the backbone"):
        fit(make_module(unfreeze_epoch=1), callbacks=[BackboneFinetuning()], max_epochs=2)
    headless = nn.Sequential(nn.Flatten())
    headless.backbone = headless[0]
    with pytest.raises(ValueError, match="Nothing is trained while the backbone is frozen"):
        fit(make_module(headless, unfreeze_epoch=1), max_epochs=2)
    static = DDPStrategy(static_graph=True, start_method="fork")  # the process group ends with the forked process
    with pytest.raises(Exception, match="which static_graph=True does not allow"):
        fit(make_module(unfreeze_epoch=1), strategy=static, max_epochs=2)


def test_a_loss_with_parameters_may_train_alone():
    embedder = WithHead()
    embedder.head = nn.Identity()
    loss = NormalizedSoftmaxLoss(8, embedder(IMAGES).shape[1])
    module = make_module(Wrapper(embedder), loss, optimizer=sgd, unfreeze_epoch=None)
    records = Records()
    fit(module, callbacks=[records])
    assert {name.split(".")[0] for name in changed(records.epochs[0], records.epochs[-1], "")} == {"loss"}
    assert len(LABELS) == len(IMAGES)


def test_a_try_with_one_batch_may_end_before_the_epoch():
    fit(make_module(unfreeze_epoch=5), fast_dev_run=True)
