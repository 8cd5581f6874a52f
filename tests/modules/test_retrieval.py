import pytest
import torch
import torch.nn.functional as F
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.callbacks import BackboneFinetuning, BatchSizeFinder
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalEvaluation, RetrievalModule, SimilarityMixup
from lightning_recall.callbacks import RetrievedImages, TrainingCurves
from lightning_recall.data import ChunkLoader
from lightning_recall.losses.base import RetrievalLoss
from lightning_recall.samplers import ClassBalancedBatchSampler

pytestmark = pytest.mark.filterwarnings("ignore:.* expects unit-norm embeddings")  # ScaledLoss

LABELS = torch.arange(48) // 4
IMAGES = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))


class Vectors(LightningDataModule):
    """Class-balanced batches of 16 vectors, three an epoch, in chunks of 5 per process."""

    def train_dataloader(self):
        sampler = ClassBalancedBatchSampler(LABELS, 16, 4)
        return ChunkLoader(TensorDataset(IMAGES, LABELS), sampler, 5)

    def val_dataloader(self):
        return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=12)

    def test_dataloader(self):
        squares = TensorDataset(IMAGES[:47].reshape(-1, 1, 2, 3), LABELS[:47])  # odd: two processes share it unevenly
        return DataLoader(squares, batch_size=12)


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=generator))

    def forward(self, x):
        return F.normalize(torch.tanh(x.flatten(1).to(self.weight.dtype) @ self.weight), dim=1)


class ScaledLoss(nn.Module):
    """A loss with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.recall = RecallAtKLoss(ks=(1, 2), rank_temperature=0.1)

    def forward(self, embeddings, labels):
        return self.recall(embeddings * self.scale, labels)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def make_trainer(**kwargs):
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
        "limit_val_batches": 0,
        **kwargs,
    }
    return Trainer(**settings)


def make_module(**kwargs):
    return RetrievalModule(Embedder(), **{"loss": ScaledLoss(), "chunk_size": 3, "optimizer": sgd, **kwargs})


def fitted(module, **kwargs):
    trainer = make_trainer(**kwargs)
    trainer.fit(module, datamodule=Vectors())
    return trainer


def plain_steps(count):
    """The same steps by hand: whole batches, automatic differentiation, no Lightning."""
    module = make_module().double()
    optimizer = sgd(module.parameters())
    for indices, _ in zip(ClassBalancedBatchSampler(LABELS, 16, 4), range(count), strict=False):
        optimizer.zero_grad()
        module.loss(module.embedder(IMAGES[indices].double()), LABELS[indices]).backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("devices", [1, 2])
def test_steps_equal_plain_ones_on_one_process_and_on_two(devices):
    module, expected = make_module().double(), plain_steps(3)
    strategy = "ddp_fork" if devices > 1 else "auto"
    fitted(module, precision="64-true", devices=devices, strategy=strategy)
    assert not torch.equal(expected.embedder.weight, Embedder().weight.double())
    torch.testing.assert_close(module.embedder.weight, expected.embedder.weight, atol=1e-12, rtol=0)
    torch.testing.assert_close(module.loss.scale, expected.loss.scale, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_plain_loader_is_split_into_chunks():
    sizes = []
    module = make_module()
    module.embedder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    make_trainer(max_steps=1).fit(module, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8))
    assert max(sizes) == 3
    assert sum(sizes) == 8 + 6  # all but the last chunk twice


def test_evaluation_and_pictures_on_two_processes(tmp_path):
    def scores(devices, folder):
        callbacks = [RetrievalEvaluation(ks=(1, 2), baselines=True), RetrievedImages(), TrainingCurves()]
        strategy = "ddp_fork" if devices > 1 else "auto"
        settings = {"devices": devices, "strategy": strategy, "callbacks": callbacks, "default_root_dir": folder}
        trainer = make_trainer(**settings, limit_val_batches=1.0)
        module, data = make_module(), Vectors()
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        return {key: value.item() for key, value in trainer.callback_metrics.items() if "recall" in key}

    one, two = scores(1, tmp_path / "one"), scores(2, tmp_path / "two")
    written = [path.name for path in (tmp_path / "two").rglob("*.png")]
    assert sorted(written) == ["retrieved_images.png", "retrieved_images_worst.png", "training_curves.png"]
    tested = [key for key in one if key.startswith("test/")]
    assert len(tested) == 6
    assert {key: two[key] for key in tested} == pytest.approx({key: one[key] for key in tested})


def test_mixup_is_the_same_on_one_process_and_on_two():
    one, two = (make_module(mixup=SimilarityMixup(max_virtual_per_class=3)).double() for _ in range(2))
    fitted(one, precision="64-true")
    fitted(two, precision="64-true", devices=2, strategy="ddp_fork")
    torch.testing.assert_close(two.embedder.weight, one.embedder.weight, atol=1e-12, rtol=0)


def test_diagnostics_of_the_loss_are_logged():
    fewer = fitted(make_module(loss=RecallAtKLoss(ks=(1, 2))), log_every_n_steps=4)  # of three steps none
    assert set(fewer.callback_metrics) == {"train/loss"}
    trainer = fitted(make_module(loss=RecallAtKLoss(ks=(1, 2))), log_every_n_steps=3)
    logged = trainer.callback_metrics
    assert set(logged) == {"train/loss", "train/recall@1", "train/recall@2", "train/active_positives"}
    assert 0 < logged["train/recall@1"] <= logged["train/recall@2"] <= 1


class LossOfStep(Callback):
    """Records what training steps return and log."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        from torch import distributed

        assert not outputs["loss"].requires_grad
        seen = torch.stack([outputs["loss"], trainer.callback_metrics["train/loss"]])
        if trainer.world_size > 1:
            others = [torch.empty_like(seen) for _ in range(trainer.world_size)]
            distributed.all_gather(others, seen)
            seen = torch.cat(others)
        pl_module.losses.append(seen)


@pytest.mark.parametrize("devices", [1, 3])  # three have unequal numbers of the 16 queries
@pytest.mark.parametrize("loss", [ScaledLoss, lambda: RecallAtKLoss((1, 2), rank_temperature=0.1)])
def test_a_step_returns_the_loss_of_the_whole_batch_on_every_process(devices, loss, tmp_path):
    class Kept(LossOfStep):
        def on_train_end(self, trainer, pl_module):
            torch.save(torch.stack(pl_module.losses), tmp_path / f"{trainer.global_rank}.pt")

    module = make_module(loss=loss()).double()
    module.losses = []
    strategy = "ddp_fork" if devices > 1 else "auto"
    fitted(module, precision="64-true", devices=devices, strategy=strategy, callbacks=[Kept()])

    plain, expected = make_module(loss=loss()).double(), []
    optimizer = sgd(plain.parameters())
    for indices in ClassBalancedBatchSampler(LABELS, 16, 4):
        optimizer.zero_grad()
        value = plain.loss(plain.embedder(IMAGES[indices].double()), LABELS[indices])
        value.backward()
        optimizer.step()
        expected.append(value.detach())
    seen = torch.load(tmp_path / "0.pt")  # (3, 2 * devices)
    torch.testing.assert_close(seen, torch.stack(expected)[:, None].expand_as(seen).to(seen.dtype), atol=1e-6, rtol=0)
    assert len(set(torch.stack(expected).tolist())) == 3


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.backbone, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return F.normalize(self.head(self.backbone(x).tanh()), dim=1)


def test_a_backbone_is_frozen_and_unfrozen_later():
    seen = []

    class Backbone(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            groups = trainer.optimizers[0].param_groups
            seen.append((pl_module.embedder.backbone.weight.clone(), [group["lr"] for group in groups]))

    module = RetrievalModule(TwoParts(), ScaledLoss(), chunk_size=3, optimizer=sgd)
    names = set(module.state_dict())
    fitted(module, callbacks=[BackboneFinetuning(1, backbone_initial_ratio_lr=0.25), Backbone()], max_epochs=2)
    (first, rates), (second, later) = seen
    assert torch.equal(first, TwoParts().backbone.weight)
    assert not torch.equal(second, first)
    assert (rates, later) == ([1.0], [1.0, 0.25])
    assert set(module.state_dict()) == names
    assert module.backbone is module.embedder.backbone


def test_a_subclass_may_have_its_own_backbone():
    assert not hasattr(make_module(), "backbone")
    module = RetrievalModule(TwoParts(), ScaledLoss())
    module.backbone = nn.Linear(1, 1)
    assert module.backbone.in_features == 1


def test_batch_size_finder_is_refused():
    module = make_module()
    with pytest.raises(ValueError, match=r'BatchSizeFinder would change the loss.* chunk_size="auto" finds'):
        fitted(module, callbacks=[BatchSizeFinder()])
    with pytest.raises(ValueError, match="BatchSizeFinder would change the loss"):
        Tuner(make_trainer()).scale_batch_size(module, datamodule=Vectors())
    with pytest.raises(
        MisconfigurationException, match="Field batch_size not found"
    ):  # Lightning's: no loss is changed
        make_trainer(callbacks=[BatchSizeFinder()], limit_val_batches=1).validate(
            module, datamodule=Vectors(), verbose=False
        )
    fitted(module, callbacks=[BatchSizeFinder(batch_arg_name="chunk_size", max_trials=2, steps_per_trial=1)])
    assert module.chunk_size == 4  # 2, doubled


class Fails(Embedder):
    """Fails once, in one of its passes; draws noise from all three generators, and has a buffer."""

    def __init__(self, at):
        super().__init__()
        self.passes, self.at = 0, at
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        self.passes += self.training
        if self.passes == self.at:
            raise ZeroDivisionError
        return super().forward(F.dropout(self.norm(x), 0.5, self.training))


@pytest.mark.parametrize("at", [2, 11])  # in the first pass, in the recomputation
def test_a_failed_step_does_not_change_the_next_one(at):
    """A batch of 16 in chunks of 5 needs 8 forward passes, and recomputes 7 of them."""

    class Continues(RetrievalModule):
        def training_step(self, batch, batch_idx):
            if batch_idx == 0 and self.embedder.at:
                with pytest.raises(ZeroDivisionError):
                    super().training_step(batch, batch_idx)
                return None
            torch.manual_seed(batch_idx)
            if batch_idx == 1:  # what the first pass of chunks has done to the buffers stays, as in plain training
                self.embedder.norm.reset_running_stats()
            return super().training_step(batch, batch_idx) if batch_idx else None

    def trained(at):
        module = Continues(Fails(at), ScaledLoss(), chunk_size=3, optimizer=sgd, accumulate_grad_batches=2)
        fitted(module)
        assert not torch.is_autocast_enabled("cpu")
        assert not module.embedder._forward_pre_hooks
        return module

    clean, failed = trained(0), trained(at)
    for name, value in clean.state_dict().items():
        torch.testing.assert_close(failed.state_dict()[name], value, atol=0, rtol=0)
    assert clean.embedder.norm.num_batches_tracked == 16


def test_mixup_feeds_the_loss():
    seen = []

    class Spy(RecallAtKLoss):
        accepts_virtual = False

        def forward(self, embeddings, labels):
            seen.append(len(labels))
            return super().forward(embeddings, labels)

    fitted(make_module(loss=Spy(), mixup=SimilarityMixup()))
    assert seen == [16 + 4 * 6] * 3


class Products(RetrievalLoss):
    shares_queries = True
    accepts_virtual = True

    def compute(self, embeddings, labels, queries, pairs):
        self.diagnostics = {"queries": len(queries), "pairs": len(pairs[0])}
        return (embeddings @ embeddings.T).mean()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_splits_queries_and_mixes_virtual_items_if_it_declares_so(compiled):
    loss = torch.compile(Products(), backend="eager") if compiled else Products()
    module = make_module(loss=loss, mixup=SimilarityMixup())
    second_of_two = type("Fake", (), {"world_size": 2, "global_rank": 1})()
    module.trainer = second_of_two
    _, loss_scale = module.batch_loss(F.normalize(torch.randn(5, 4), dim=1), torch.tensor([0, 0, 0, 1, 2]))
    assert module.loss.diagnostics == {"queries": 3, "pairs": 3}  # of three real and three virtual ones
    assert loss_scale == 2 * 3 / 6


def precision(name):
    if name != "16-mixed":
        return {"precision": name}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # Lightning would take bf16 on a CPU
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


class FirstGradient(Callback):
    """Records the embedder's gradient in float64 at the first optimizer step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not hasattr(self, "seen"):
            self.seen = torch.cat([p.grad.double().flatten() for p in pl_module.embedder.parameters()])


class Mlp(nn.Module):
    """Matrix products only, which autocast runs in low precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, x):
        return F.normalize(self.layers(x), dim=1)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("64-true", torch.float64, 0),
        ("32-true", torch.float32, 1e-5),
        ("bf16-mixed", torch.float32, 0.05),
        ("16-mixed", torch.float32, 0.01),
        ("bf16-true", torch.float32, 0.1),
    ],
)
def test_precisions(name, dtype, tolerance):
    class Spy(RecallAtKLoss):
        def forward(self, embeddings, labels):
            assert embeddings.dtype == dtype
            assert not torch.is_autocast_enabled("cpu")
            return super().forward(embeddings, labels)

    def gradient(**kwargs):
        first = FirstGradient()
        make = RetrievalModule(Mlp(), kwargs.pop("loss"), chunk_size=3, optimizer=sgd)
        fitted(make, callbacks=[first], **kwargs)
        return first.seen

    settings = {"ks": (1, 2), "rank_temperature": 0.5}
    expected = gradient(loss=RecallAtKLoss(**settings), precision="64-true")
    actual = gradient(loss=Spy(**settings), **precision(name))
    assert (actual - expected).norm() <= tolerance * expected.norm()
    assert expected.norm() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_size": 0}, 'an integer from 1, or "auto", got 0'),
        ({"chunk_size": "Auto"}, "got 'Auto'"),
        ({"chunk_size": 3.0}, "got 3.0"),
        ({"keep_chunks": 0}, "keep_chunks must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_module(**arguments)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_batch_without_positives_is_refused_before_the_weights_change():
    module = make_module()
    with pytest.raises(ValueError, match="No query has a positive"):
        make_trainer().fit(module, DataLoader(TensorDataset(IMAGES, torch.arange(48)), batch_size=8))
    assert torch.equal(module.embedder.weight, Embedder().weight)


def test_parameters_of_the_loss_have_their_learning_rate():
    rates = [
        [group["lr"] for group in make_module(loss_lr=lr).configure_optimizers()[0][0].param_groups]
        for lr in (None, 0.5)
    ]
    assert rates == [[1.0], [1.0, 0.5]]
    _, of_loss = make_module(loss_lr=0.5).parameter_groups()
    assert [p.item() for p in of_loss["params"]] == [2.0]  # ScaledLoss.scale


def test_a_checkpoint_of_plain_python_reloads(tmp_path):
    module = make_module()
    trainer = fitted(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    again = RetrievalModule.load_from_checkpoint(tmp_path / "module.ckpt", embedder=Embedder(), loss=ScaledLoss())
    assert torch.equal(again.embedder.weight, module.embedder.weight)


def test_predict_gives_embeddings():
    module = make_module()
    batches = make_trainer().predict(module, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=20))
    torch.testing.assert_close(torch.cat(batches), module.embedder(IMAGES))


@pytest.mark.parametrize(("before", "now"), [(None, SimilarityMixup()), (SimilarityMixup(), None)])
def test_a_training_is_resumed_with_its_mixup(before, now, tmp_path):
    fitted(make_module(mixup=before)).save_checkpoint(tmp_path / "first.ckpt")
    message = (
        "trained with mixup, but this run does not use it: " if before else "without mixup, but this run uses it: "
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(max_epochs=2).fit(make_module(mixup=now), datamodule=Vectors(), ckpt_path=tmp_path / "first.ckpt")
    module = make_module(mixup=now)  # as the message says
    weights = torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"]
    module.load_state_dict(weights, strict=False)
    assert torch.equal(module.embedder.weight, weights["embedder.weight"])
