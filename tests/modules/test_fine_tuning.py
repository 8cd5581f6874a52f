import pytest
import timm
import torch
from small_trainings import Wrapper, fit, make_module, timm_embedder
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall.losses import ProxyAnchorLoss
from lightning_recall.models import SmallConvNet
from lightning_recall.optimization import WarmupCosineLR


def group_of(module, optimizer):
    """Name of each parameter -> its group in the optimizer."""
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    return found


def test_each_part_has_its_rate_and_only_matrices_have_weight_decay():
    module = make_module(
        loss=ProxyAnchorLoss(8, 8),
        optimizer=lambda groups: AdamW(groups, lr=0.01, weight_decay=0.3),
        head_lr=0.1,
        loss_lr=0.2,
        layer_decay=0.5,
    )
    (optimizer,), _ = module.configure_optimizers()
    groups = group_of(module, optimizer)
    assert set(groups) == {name for name, _ in module.named_parameters()}
    for name, parameter in module.named_parameters():
        assert groups[name]["weight_decay"] == (0.3 if parameter.ndim > 1 else 0), name
        assert "lr_scale" not in groups[name]
    assert {groups[name]["lr"] for name in groups if name.startswith("loss.")} == {0.2}
    new = [name for name in groups if name.startswith("embedder.") and not name.startswith("embedder.backbone.")]
    assert "embedder.pooling.p" in new
    assert {groups[name]["lr"] for name in new} == {0.1}
    assert groups["embedder.backbone.conv_head.weight"]["lr"] == 0.01
    rates = {groups[name]["lr"] for name in groups if name.startswith("embedder.backbone.")}
    assert (
        min(rates)
        == groups["embedder.backbone.conv_stem.weight"]["lr"]
        == pytest.approx(0.01 * 0.5 ** (len(rates) - 1))
    )


def test_lr_find_sets_the_rate_that_layers_are_scaled_from():
    module = make_module(layer_decay=0.5, head_lr=0.1, optimizer=lambda groups: SGD(groups, lr=9.0))
    module.lr = 0.01
    groups = group_of(module, module.configure_optimizers()[0][0])
    assert groups["embedder.backbone.conv_head.weight"]["lr"] == 0.01
    assert 0 < groups["embedder.backbone.conv_stem.weight"]["lr"] < 0.01
    assert groups["embedder.projection.1.weight"]["lr"] == 0.1


def test_schedules_keep_the_ratios_or_are_refused():
    module = make_module(layer_decay=0.5, optimizer=lambda groups: SGD(groups, lr=1.0))
    rates = [group["lr"] for group in module.configure_optimizers()[0][0].param_groups]
    assert len(set(rates)) > 4
    module.lr_scheduler = lambda optimizer: WarmupCosineLR(optimizer, 0.2, total_steps=2)
    trainer = fit(module)
    assert [group["initial_lr"] for group in trainer.optimizers[0].param_groups] == rates
    module.lr_scheduler = lambda optimizer: OneCycleLR(optimizer, 1.0, total_steps=2)
    with pytest.raises(
        ValueError, match=r"OneCycleLR overrides the learning rates from .* to 1 .* such as WarmupCosineLR"
    ):
        module.configure_optimizers()


def test_training_moves_low_layers_less():
    def moved(**kwargs):
        module = make_module(optimizer=lambda groups: SGD(groups, lr=0.1), **kwargs)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        fit(module, limit_train_batches=1)
        return {name: (p - before[name]).norm().item() for name, p in module.named_parameters()}

    equal, decayed, head = moved(), moved(layer_decay=0.5), moved(head_lr=0.3)
    stem, top, projection = "backbone.conv_stem.weight", "backbone.conv_head.weight", "projection.1.weight"
    assert decayed[f"embedder.{top}"] == pytest.approx(equal[f"embedder.{top}"])
    assert 0 < decayed[f"embedder.{stem}"] < 0.1 * equal[f"embedder.{stem}"]
    assert head[f"embedder.{stem}"] == pytest.approx(equal[f"embedder.{stem}"])
    assert head[f"embedder.{projection}"] == pytest.approx(3 * equal[f"embedder.{projection}"], rel=1e-4)


def test_own_backbones_keep_one_group_unless_a_rate_is_set():
    def groups(**kwargs):
        embedder = ImageEmbedder(SmallConvNet(), embedding_dim=8, norm="batch")
        return make_module(embedder, **kwargs).parameter_groups()

    assert [set(group) for group in groups()] == [{"params"}]
    assert [group.get("lr") for group in groups(head_lr=0.1)] == [None, None, 0.1, 0.1]
    assert [group.get("weight_decay") for group in groups(head_lr=0.1)] == [0, None, 0, None]
    with pytest.raises(ValueError, match="SmallConvNet has none: set layer_decay to 1"):
        groups(layer_decay=0.5)


@pytest.mark.parametrize("settings", [{"head_lr": 0.1}, {"layer_decay": 0.5}])
def test_an_embedder_without_backbone_is_refused(settings):
    module = make_module(nn.Linear(3, 2), **settings)
    with pytest.raises(ValueError, match="need an embedder with an attribute `backbone`, which Linear has not"):
        module.parameter_groups()
    assert len(make_module(nn.Linear(3, 2)).parameter_groups()) == 1


def test_an_invalid_decay_raises_at_once():
    with pytest.raises(ValueError, match="layer_decay must be above 0 and at most 1"):
        make_module(layer_decay=1.1)


class OneGroup(RetrievalModule):
    """As in releases without groups for fine-tuning."""

    def parameter_groups(self):
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        del checkpoint["has_parameter_groups"]


@pytest.mark.parametrize("resumed_twice", [False, True])
def test_a_checkpoint_with_one_group_resumes_with_one(tmp_path, resumed_twice):
    def new(kind, **kwargs):
        return kind(timm_embedder(), RecallAtKLoss((1, 2)), chunk_size=4, **kwargs)

    torch.manual_seed(0)
    whole = new(OneGroup)
    fit(whole, max_epochs=3)
    torch.manual_seed(0)
    path = tmp_path / "old.ckpt"
    fit(new(OneGroup)).save_checkpoint(path)
    if resumed_twice:
        fit(new(RetrievalModule), path, max_epochs=2).save_checkpoint(tmp_path / "new.ckpt")
        path = tmp_path / "new.ckpt"
    resumed = new(RetrievalModule)
    trainer = fit(resumed, path, max_epochs=3)
    assert len(trainer.optimizers[0].param_groups) == 1
    for (name, expected), actual in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(actual, expected), name
    assert len(fit(resumed).optimizers[0].param_groups) > 1  # a new training has the groups of today
    with pytest.raises(ValueError, match=r"In the checkpoint, optimizer's lr is 0.0001, but now .*--weights FILE"):
        fit(new(RetrievalModule, head_lr=0.1), path)


def test_the_backbone_of_a_wrapped_embedder_is_found():
    embedder = timm_embedder()
    module = make_module(Wrapper(Wrapper(embedder)), layer_decay=0.5)
    assert module.backbone is embedder.backbone
    assert len(module.parameter_groups()) > 6
    with pytest.raises(AttributeError, match="backbone"):
        make_module(nn.Linear(3, 2)).backbone  # noqa: B018  # the property raises


class Sized(nn.Linear):
    image_size = 24

    def features(self, images):
        return images + 1


def test_features_and_the_image_size_are_the_embedders():
    module = make_module(Sized(3, 2))
    assert (module.image_size, make_module(nn.Linear(3, 2)).image_size) == (24, None)
    assert torch.equal(module.features(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_resnet", "test_nfnet"])
def test_families_of_timm_have_layers(name):
    backbone = timm.create_model(name, num_classes=0)
    embedder = nn.Module()
    embedder.backbone = backbone
    groups = make_module(embedder, layer_decay=0.5).parameter_groups()
    assert len({group.get("lr_scale", 1.0) for group in groups}) > 3
    assert sum(len(group["params"]) for group in groups) == len(list(backbone.parameters()))
