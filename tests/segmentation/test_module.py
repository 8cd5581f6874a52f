import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.loggers import CSVLogger
from rich import get_console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import RunSummary, TrainingCurves
from lightning_recall.optimization import WarmupCosineLR
from lightning_recall.segmentation.callbacks.class_table import ClassTable
from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, StructuralSimilarityLoss
from lightning_recall.segmentation.models import SmallUNet
from lightning_recall.segmentation.module import SegmentationModule
from lightning_recall.segmentation.scores import SegmentationScores

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

C, SIZE = 4, (8, 10)
NAMES = ["road", "traffic light", "car/van", "car"]


def draw(count=12, seed=0):
    """Images (N, 3, 8, 10) uint8 whose red channel says the class, and masks with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, *SIZE), dtype=torch.uint8, generator=generator)
    masks = (images[:, 0] // 64).long()
    for number in range(count):
        masks[number, : number % 4] = 255  # a different number in each image
    return images, masks


def loader(count=12, batch_size=4, seed=0, **kwargs):
    return DataLoader(TensorDataset(*draw(count, seed)), batch_size=batch_size, **kwargs)


def net(channels=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Tanh(), nn.Conv2d(channels, C, 1))


def make(loss=None, network=None, lr=0.05, **kwargs):
    loss = loss or nn.CrossEntropyLoss(ignore_index=255)
    return SegmentationModule(network or net(), loss, C, optimizer=partial(torch.optim.SGD, lr=lr), **kwargs)


def trainer_of(folder, *callbacks, **kwargs):
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, callbacks=[*callbacks], **{**defaults, **quiet, **kwargs})


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_close(actual, expected, atol):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=atol, rtol=0, msg=name)


def test_scores_and_losses_of_an_evaluation(tmp_path):
    module = make(class_names=NAMES)
    trainer = trainer_of(tmp_path)
    (logged,) = trainer.validate(module, loader(10), verbose=False)  # the last batch has 2 images
    images, masks = draw(10)
    logits = module(images)
    scores = SegmentationScores(C, 255)
    scores.update(logits, masks)
    expected = scores.compute()
    losses = [F.cross_entropy(logits[i : i + 4], masks[i : i + 4], ignore_index=255).item() for i in (0, 4, 8)]
    assert logged["val/loss"] == pytest.approx((4 * losses[0] + 4 * losses[1] + 2 * losses[2]) / 10, abs=1e-6)
    for name in ("miou", "mean_accuracy", "mean_precision", "pixel_accuracy"):
        assert logged[f"val/{name}"] == pytest.approx(expected[name].item(), abs=1e-6), name
    for number, name in enumerate(["road", "traffic_light", "car_van", "car"]):
        for score in ("iou", "accuracy", "precision"):
            assert logged[f"val/{score}/{name}"] == pytest.approx(expected[score][number].item(), abs=1e-6)
    assert len(logged) == 5 + 3 * C
    assert (tmp_path / "runs" / "version_0" / "class_scores_val.csv").exists()
    (tested,) = trainer.test(module, loader(10), verbose=False)
    assert {key.replace("test/", "val/") for key in tested} == set(logged)


def test_bytes_are_normalised_and_floats_are_not():
    images = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    module = SegmentationModule(
        nn.Identity(), nn.CrossEntropyLoss(ignore_index=255), 3, mean=[0.5, 0, 0], std=[2, 1, 1]
    )
    expected = images / 255
    expected[:, 0] = (expected[:, 0] - 0.5) / 2
    torch.testing.assert_close(module(images), expected)
    assert torch.equal(module(images.float()), images.float())

    class Knows(nn.Identity):
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    class HasBuffers(nn.Identity):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.5, 0.25, 0.125]))
            self.std = lambda: None  # not numbers

    known = SegmentationModule(HasBuffers(), nn.CrossEntropyLoss(ignore_index=255), 3)
    assert (known.mean, known.std) == ((0.5, 0.25, 0.125), (0.229, 0.224, 0.225))
    assert SegmentationModule(Knows(), nn.CrossEntropyLoss(ignore_index=255), 3).std == (0.4, 0.5, 0.6)
    assert SegmentationModule(nn.Identity(), nn.CrossEntropyLoss(ignore_index=255), 3).mean == (0.485, 0.456, 0.406)


class WithAux(nn.Module):
    """Predicts at half the size, with an auxiliary head, as torchvision's networks do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.classifier, self.aux_classifier = (
            nn.Conv2d(3, 4, 2, 2),
            nn.Conv2d(4, C, 1),
            nn.Conv2d(4, C, 1),
        )

    def forward(self, images):
        maps = self.backbone(images)
        return {"out": self.classifier(maps), "aux": self.aux_classifier(maps)}


@pytest.mark.parametrize("aux_weight", [0.4, 0.0])
def test_the_loss_of_an_auxiliary_head(aux_weight, tmp_path):
    network = WithAux()
    loss = RecallCrossEntropyLoss(C, 255, momentum=0.5)
    module = make(loss, network, aux_weight=aux_weight)
    trainer = trainer_of(tmp_path, max_steps=1)
    images, masks = draw(4)
    output = network(images.float())
    parts = [F.interpolate(output[name], SIZE, mode="bilinear", align_corners=False) for name in ("out", "aux")]
    separate = [RecallCrossEntropyLoss(C, 255)(part, masks) for part in parts]
    trainer.fit(module, DataLoader(TensorDataset(images.float(), masks), batch_size=4))
    expected = separate[0] + aux_weight * separate[1]
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert module(images).shape == (4, C, *SIZE)


def torchvision_network():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    return lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=C)


def smp_network():
    smp = pytest.importorskip("segmentation_models_pytorch")  # an extra
    return smp.FPN("resnet18", encoder_weights=None, classes=C)


@pytest.mark.parametrize("network", [torchvision_network, smp_network, partial(SmallUNet, C, 4)])
def test_networks(network, tmp_path):
    images, masks = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8), torch.randint(C, (4, 64, 64))
    data = DataLoader(TensorDataset(images, masks), batch_size=2)
    module = make(RecallCrossEntropyLoss(C, 255), network())
    trainer = trainer_of(tmp_path, gradient_clip_val=1.0)
    trainer.fit(module, data, data)
    assert 0 < trainer.callback_metrics["val/miou"] < 1
    (predictions,) = trainer.predict(module, DataLoader(images[:3], batch_size=3))
    assert predictions.shape == (3, 64, 64)
    assert predictions.dtype == torch.uint8
    assert torch.equal(predictions, module.eval()(images[:3]).argmax(1).to(torch.uint8))


LOSSES = {
    "cross-entropy": partial(nn.CrossEntropyLoss, ignore_index=255),
    "recall": partial(RecallCrossEntropyLoss, C, 255, momentum=0.5),
    "similarity": partial(StructuralSimilarityLoss, C, 255),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.filterwarnings("ignore:The val split has no pixel with a class")
def test_batches_without_a_class_do_not_change_the_network(loss, tmp_path):
    images, masks = draw(4)
    data = DataLoader(TensorDataset(images, torch.full_like(masks, 255)), batch_size=2)
    module = make(loss())
    before = weights(module.network)
    trainer = trainer_of(tmp_path)
    trainer.fit(module, data, data)
    assert_close(weights(module.network), before, 0)
    assert trainer.callback_metrics["train/loss"] == 0
    assert trainer.callback_metrics["val/loss"] == 0
    assert trainer.callback_metrics["val/miou"].isnan()


def test_an_evaluation_without_a_class_says_so(tmp_path):
    images, masks = draw(4)
    data = DataLoader(TensorDataset(images, torch.full_like(masks, 255)), batch_size=2)
    with pytest.warns(UserWarning, match="The test split has no pixel with a class"):
        trainer_of(tmp_path).test(make(), data, verbose=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(nn.CrossEntropyLoss()), r"ignore_index of the loss \(CrossEntropyLoss\) is -100"),
        (lambda: make(RecallCrossEntropyLoss(5, 255)), r"num_classes of the loss .* is 5, but .* is 4"),
        (lambda: make(network=SmallUNet(5)), r"num_classes of the network \(SmallUNet\) is 5"),
        (lambda: make(class_names=["a"]), "one name for each of the 4 classes"),
        (lambda: make(aux_weight=-1), "aux_weight must be at least 0, got -1"),
        (lambda: SegmentationModule(net(), nn.CrossEntropyLoss(ignore_index=255), 1), "num_classes must be at least 2"),
        (lambda: make(lr_frequency=0), "lr_frequency must be at least 1, got 0"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("evaluate", [False, True])
def test_a_label_without_a_class_is_an_error(loss, evaluate, tmp_path):
    images, masks = draw(4)
    masks[0, 5, 5] = C
    data, trainer = DataLoader(TensorDataset(images, masks), batch_size=4), trainer_of(tmp_path)
    with pytest.raises(ValueError, match="classes from 0 to 3, or 255 for ignored pixels, got 4"):
        (trainer.validate if evaluate else trainer.fit)(make(loss()), data)


def test_data_with_the_classes_in_another_order_are_refused(tmp_path):
    class Data(LightningDataModule):
        num_classes, ignore_index, class_names = C, 255, ("a", "b", "c", "d")

        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return loader()

    trainer = trainer_of(tmp_path)
    trainer.fit(make(), datamodule=Data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    Data.class_names = ("a", "c", "b", "d")
    with pytest.raises(ValueError, match="another order: class 1 is 'b' for the network, but 'c' in the data"):
        trainer_of(tmp_path).validate(make(), datamodule=Data(), ckpt_path=tmp_path / "a.ckpt")


def test_the_network_and_the_data_are_compared_with_the_module(tmp_path):
    with pytest.raises(ValueError, match="logits of 6 classes, but num_classes is 4"):
        trainer_of(tmp_path).fit(make(network=nn.Conv2d(3, 6, 1)), loader())

    class Data(LightningDataModule):
        num_classes, ignore_index, class_names = C, 255, ("a", "b", "c", "d")

        def train_dataloader(self):
            return loader()

        def test_dataloader(self):
            return loader()

    module = make()
    trainer_of(tmp_path).test(module, datamodule=Data(), verbose=False)
    assert module.class_names == ("a", "b", "c", "d")
    given = make(class_names=NAMES)
    trainer_of(tmp_path).test(given, datamodule=Data(), verbose=False)
    assert given.class_names == tuple(NAMES)
    Data.ignore_index = 0
    with pytest.raises(ValueError, match=r"ignore_index of the data module \(Data\) is 0, but .* is 255"):
        trainer_of(tmp_path).fit(make(), datamodule=Data())


def test_accumulated_batches_are_one_batch(tmp_path):
    images, masks = torch.randn(8, 3, *SIZE), torch.randint(C, (8, *SIZE))
    ends = []
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        module = make(nn.CrossEntropyLoss(ignore_index=255)).double()
        data = DataLoader(TensorDataset(images.double(), masks), batch_size=batch_size)
        trainer = trainer_of(tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=0.1, precision="64-true")
        trainer.fit(module, data)
        assert trainer.global_step == 2
        ends.append(weights(module))
    assert_close(ends[1], ends[0], 1e-12)
    assert_close(ends[2], ends[0], 1e-12)
    assert max((ends[0][f"network.{name}"] - p).abs().max() for name, p in net().named_parameters()) > 1e-4


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_bfloat16(loss, tmp_path):
    ends = {}
    for precision in ("32-true", "bf16-mixed"):
        module = make(loss())
        trainer = trainer_of(tmp_path, precision=precision)
        trainer.fit(module, loader(), loader())
        ends[precision] = (trainer.callback_metrics["train/loss"], trainer.callback_metrics["val/miou"])
        assert module.network[0].weight.dtype == torch.float32
    for exact, low in zip(*ends.values(), strict=True):
        assert low == pytest.approx(exact.item(), abs=0.02)
    assert ends["32-true"][0] != ends["bf16-mixed"][0]


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_warmup_cosine_gets_the_length_of_the_training(tmp_path):
    rates = Rates()
    module = make(lr=1.0, lr_scheduler=partial(WarmupCosineLR, warmup=1))
    trainer_of(tmp_path, rates, max_epochs=2, accumulate_grad_batches=2).fit(module, loader())  # 3 batches: 2 steps
    cosine = [(1 + torch.cos(torch.tensor(torch.pi * t / 3)).item()) / 2 for t in (0, 1, 2)]
    steps = [0.5, *cosine]
    assert rates.rates == pytest.approx([steps[i] for i in (0, 0, 1, 2, 2, 3)], abs=1e-6)


def test_plateau_schedulers_get_their_score(tmp_path):
    plateau = partial(ReduceLROnPlateau, monitor="val/miou", mode="max", patience=0, threshold=9, factor=0.1)
    rates = Rates()
    module = make(lr=1e-3, lr_scheduler=plateau)
    trainer_of(tmp_path, rates, max_epochs=3).fit(module, loader(4), loader(4))
    assert rates.rates == pytest.approx([1e-3, 1e-3, 1e-4])


def test_averaged_weights(tmp_path):
    """The average is that of a loop; the buffer of the loss is not averaged; a test after the training uses it."""
    decay, seen, buffers = 0.6, [], []

    class Average(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            buffers.append(pl_module.loss.running_weights.clone())
            seen.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    loss = RecallCrossEntropyLoss(C, 255, momentum=0.5)
    module = make(loss, lr=0.5)
    saving = ModelCheckpoint(tmp_path, monitor="val/miou", mode="max")
    trainer = trainer_of(tmp_path, saving, Average(), EMAWeightAveraging(decay=decay), enable_checkpointing=True)
    trainer.fit(module, loader(), loader())
    average = seen[0]
    for now in seen[1:]:
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    assert_close({name: p.detach() for name, p in module.named_parameters()}, average, 1e-6)
    running = torch.load(saving.best_model_path)["state_dict"]["loss.running_weights"]
    assert torch.equal(running, buffers[-1])
    assert torch.equal(loss.running_weights, buffers[-1])
    assert not torch.equal(buffers[0], buffers[-1])
    before = trainer.callback_metrics["val/miou"].item()
    (tested,) = trainer.test(module, loader(), ckpt_path=saving.best_model_path, verbose=False)
    assert tested["test/miou"] == before


def test_a_checkpoint_rebuilds_the_module(tmp_path):
    module = make(class_names=NAMES, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    trainer = trainer_of(tmp_path)
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    arguments = {"network": net(), "loss": nn.CrossEntropyLoss(ignore_index=255), "num_classes": C}
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt", **arguments)
    images, _ = draw(2)
    assert torch.equal(loaded(images), module(images))
    assert loaded.class_names == tuple(NAMES)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    other = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt", **arguments, mean=(0.5, 0.5, 0.5))
    assert other.mean == (0.5, 0.5, 0.5)
    assert loaded.history.validations == module.history.validations


@pytest.mark.parametrize("monitor", ["val/miou", "val/iou/car", "val/precision/traffic_light", "val/pixel_accuracy"])
def test_checkpoints_can_monitor_any_score(monitor, tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor=monitor, mode="max")
    trainer = trainer_of(tmp_path, saving, enable_checkpointing=True, max_epochs=3)
    module = make(class_names=NAMES)
    trainer.fit(module, loader(), loader())
    scores = [validation.scores[monitor] for validation in module.history.validations]
    assert saving.best_model_score.item() == pytest.approx(max(scores), abs=1e-6)


@pytest.mark.parametrize(
    ("monitor", "mode", "loaders", "message"),
    [
        ("val/mIoU", "max", 1, "Did you mean 'val/miou'"),
        ("val/iou/traffic light", "max", 1, "Did you mean 'val/iou/traffic_light'"),
        ("val/miou", "min", 1, 'set mode="max"'),
        ("val/loss", "max", 1, 'set mode="min"'),
        ("val/miou", "max", 0, "but there is no validation"),
    ],
)
def test_monitors_are_checked_before_training(monitor, mode, loaders, message, tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor=monitor, mode=mode)
    trainer = trainer_of(tmp_path, saving, enable_checkpointing=True, num_sanity_val_steps=1)
    with pytest.raises(ValueError, match=message):
        trainer.fit(make(class_names=NAMES), loader(), *[loader()] * loaders)


def test_several_dataloaders_have_their_own_scores(tmp_path):
    module, loaders = make(class_names=NAMES), {"day": loader(4, seed=1), "night": loader(6, seed=2)}
    saving = ModelCheckpoint(tmp_path, monitor="val/night/miou", mode="max")
    trainer = trainer_of(tmp_path, saving, enable_checkpointing=True, num_sanity_val_steps=-1)
    trainer.fit(module, loader(), loaders)
    for name, seed, count in (("day", 1, 4), ("night", 2, 6)):
        scores = SegmentationScores(C, 255)
        images, masks = draw(count, seed)
        scores.update(module(images), masks)
        expected = scores.compute()
        assert trainer.callback_metrics[f"val/{name}/miou"].item() == pytest.approx(expected["miou"].item(), abs=1e-6)
        assert f"val/{name}/iou/car_van" in trainer.callback_metrics
    folder = tmp_path / "runs" / "version_0"
    assert {path.name for path in folder.glob("*.csv")} == {"class_scores_val_day.csv", "class_scores_val_night.csv"}
    (*tested,) = trainer.test(module, [loader(4), loader(6)], verbose=False)
    assert {key for row in tested for key in row if key.endswith("/miou")} == {"test/0/miou", "test/1/miou"}


def test_the_table_before_and_after_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(get_console(), "_width", 120)
    module = make(RecallCrossEntropyLoss(C, 255), class_names=NAMES, lr=0.5)
    saving = ModelCheckpoint(tmp_path / "run" / "checkpoints", monitor="val/miou", mode="max")
    callbacks = (RunSummary(), TrainingCurves(score_prefix="val/miou"), saving)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = trainer_of(
        tmp_path, *callbacks, enable_checkpointing=True, max_epochs=3, num_sanity_val_steps=-1, logger=logger
    )
    trainer.fit(module, loader(), loader())
    shown = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line.split("│")[2:] for line in shown.splitlines() if line.count("│") > 2}
    assert lines["architecture"][0].strip() == "Sequential"
    assert lines["loss"][0].strip() == "RecallCrossEntropyLoss"
    assert lines["image size"][0].strip() == "8 x 10"
    assert lines["batch"][0].strip() == "4 images"
    assert lines["classes"][0].strip() == "4, pixels with 255 are ignored"
    for title in ("mIoU", "mean accuracy", "mean precision", "pixel accuracy"):
        assert title in shown
    values = {
        "before training": make(RecallCrossEntropyLoss(C, 255))(draw()[0]),
        "last, after 3 epochs": module(draw()[0]),
    }
    for row, logits in values.items():
        scores = SegmentationScores(C, 255)
        scores.update(logits, draw()[1])
        assert lines[row][0].strip() == f"{100 * scores.compute()['miou'].item():.1f}"
    assert any(row.startswith("best, after") for row in lines)
    assert "Last validation" not in shown
    assert "val/" not in shown
    assert "traffic light" in shown
    assert (tmp_path / "run" / "training_curves.png").exists()
    assert len(trainer.callbacks[1].curves()["val/miou"]) == 3


def test_a_short_sanity_check_scores_nothing(tmp_path):
    module = make()
    trainer = trainer_of(tmp_path, num_sanity_val_steps=1)
    trainer.fit(module, loader(), loader())
    assert module.history.baselines == {}
    trainer.validate(module, loader(), verbose=False)  # no part of the training
    assert len(module.history.validations) == 1


def test_a_continued_training_has_no_scores_before_training(tmp_path):
    module, trainer = make(), trainer_of(tmp_path, num_sanity_val_steps=-1)
    for max_epochs, rows in ((1, ["before training"]), (2, [])):
        trainer.fit_loop.max_epochs = max_epochs
        trainer.fit(module, loader(), loader())
        assert list(module.history.baselines) == rows


class Noisy(nn.Module):
    """A network whose training draws random numbers, and that has buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, C, 1)
        )

    def forward(self, images):
        return self.layers(images)


class SavesEach(Callback):
    """Saves after each batch, at the end of each epoch, and after each validation."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            torch.manual_seed(7)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"batch{trainer.fit_loop.total_batch_idx + 1}.ckpt")

    def on_validation_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"val{trainer.current_epoch}.ckpt")


def resumable(folder, ckpt_path=None, stateful=False, **kwargs):
    """Trains for three epochs of three batches; shuffles with torch's generator, or with a stateful loader."""
    from lightning_recall.segmentation.datamodules import ScenesDataModule

    folder.mkdir(exist_ok=True)
    seed_everything(3, verbose=False)
    loss = RecallCrossEntropyLoss(9 if stateful else C, 255, momentum=0.5)
    network = Noisy()
    if stateful:
        network.layers[-1] = nn.Conv2d(6, 9, 1)
    module = SegmentationModule(
        network,
        loss,
        9 if stateful else C,
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        lr_scheduler=partial(WarmupCosineLR, warmup=2),
    )
    saving = SavesEach(folder)
    averaging = EMAWeightAveraging(decay=0.7)
    trainer = trainer_of(folder, saving, averaging, max_epochs=3, **kwargs)
    if stateful:
        data = ScenesDataModule(num_images=12, batch_size=4, check_masks=False)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    else:
        evaluation = loader(4, generator=torch.Generator())
        trainer.fit(module, loader(shuffle=True), evaluation, ckpt_path=ckpt_path)
    return weights(module), module.history.validations


@pytest.mark.parametrize(
    ("stateful", "checkpoint", "kwargs"),
    [
        (False, "val0", {}),
        (False, "val1", {}),
        (True, "val1", {}),
        (True, "batch4", {}),
        (True, "batch5", {}),
        (True, "batch7", {"accumulate_grad_batches": 2}),  # between two steps of the optimizer
    ],
)
def test_a_resumed_training_ends_like_an_uninterrupted_one(stateful, checkpoint, kwargs, tmp_path):
    expected, validations = resumable(tmp_path / "whole", stateful=stateful, **kwargs)
    path = tmp_path / "whole" / f"{checkpoint}.ckpt"
    torch.rand(5)  # another state of the generators
    actual, resumed = resumable(tmp_path / "resumed", path, stateful=stateful, **kwargs)
    assert_close(actual, expected, 0)
    assert resumed == validations
    assert len(validations) == 3


def test_a_resumed_training_keeps_its_optimizer(tmp_path):
    module, trainer = make(lr=0.1), trainer_of(tmp_path)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"optimizer's lr is 0.1, but now 0.2"):
        trainer_of(tmp_path, max_epochs=2).fit(make(lr=0.2), loader(), ckpt_path=tmp_path / "a.ckpt")


class Notes(Callback):
    """Writes the losses and scores of each process to its own file."""

    def __init__(self, folder):
        self.folder, self.losses = folder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(trainer.callback_metrics["train/loss"].item())

    def on_train_end(self, trainer, pl_module):
        confusion = {key: value.tolist() for key, value in pl_module.class_scores[""].items()}
        scores = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        notes = {"losses": self.losses, "scores": scores, "of_classes": confusion}
        (self.folder / f"{trainer.world_size}_{trainer.global_rank}.json").write_text(json.dumps(notes))
        trainer.strategy.barrier()  # the notes of all processes are read as soon as the first has ended


class Union(LightningDataModule):
    """Batches of 6 images, of which each process gets every n-th; 7 validation images, which n does not divide."""

    def __init__(self, num_val=7):
        super().__init__()
        self.num_val = num_val

    def train_dataloader(self):
        images, masks = draw(12)
        masks[0] = 255  # a process without a class, with 3 processes and 2 images each
        masks[3] = 255
        return DataLoader(TensorDataset(images, masks), batch_size=6 // self.trainer.world_size)

    def val_dataloader(self):
        return loader(self.num_val, batch_size=2, seed=5)


def fit_union(folder, devices, loss, num_val=7):
    module = make(loss(), lr=1.0).double()
    trainer = trainer_of(
        folder,
        Notes(folder),
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        precision="64-true",
        max_epochs=2,
    )
    unshuffled = partial(torch.utils.data.DistributedSampler, shuffle=False)
    data = Union(num_val)
    if devices > 1:
        original = data.train_dataloader

        def train_dataloader():
            plain = original()
            rank = torch.distributed.get_rank()
            sampler = unshuffled(plain.dataset, num_replicas=devices, rank=rank)
            return DataLoader(plain.dataset, batch_size=plain.batch_size, sampler=sampler)

        data.train_dataloader = train_dataloader
    trainer.fit(module, datamodule=data)
    notes = [json.loads((folder / f"{devices}_{rank}.json").read_text()) for rank in range(devices)]
    return weights(module), notes


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("loss", [LOSSES["recall"], LOSSES["similarity"]], ids=["recall", "similarity"])
@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_processes_train_and_score_like_one(tmp_path, devices, loss):
    expected, (alone,) = fit_union(tmp_path, 1, loss)
    actual, notes = fit_union(tmp_path, devices, loss)
    assert_close(actual, expected, 1e-9)
    assert max((expected[f"network.{name}"] - p).abs().max() for name, p in net().named_parameters()) > 1e-3
    for note in notes:
        assert note["losses"] == pytest.approx(alone["losses"], abs=1e-6)
        assert note["of_classes"] == notes[0]["of_classes"]
        for name, values in alone["of_classes"].items():
            assert note["of_classes"][name] == pytest.approx(values, abs=1e-12), name
        scores = {key: value for key, value in alone["scores"].items() if key != "val/loss"}
        assert {key: note["scores"][key] for key in scores} == pytest.approx(scores, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_more_processes_than_validation_images(tmp_path):
    _, (alone,) = fit_union(tmp_path, 1, LOSSES["cross-entropy"], num_val=2)
    _, notes = fit_union(tmp_path, 3, LOSSES["cross-entropy"], num_val=2)
    fractions = [note["of_classes"]["pixel_fraction"] for note in notes]
    assert fractions == [alone["of_classes"]["pixel_fraction"]] * 3


class Plain(LightningModule):
    """A LightningModule of a user, with the loss, the scores and the table of this package."""

    def __init__(self):
        super().__init__()
        self.network, self.loss = net(), RecallCrossEntropyLoss(C, 255)
        self.scores = SegmentationScores(C, 255)

    def training_step(self, batch, batch_idx):
        return self.loss(self.network(batch["image"]), batch["mask"])

    def validation_step(self, batch, batch_idx):
        self.scores.update(self.network(batch["image"]), batch["mask"])

    def on_validation_epoch_end(self):
        result = self.scores.compute()
        self.scores.reset()
        self.class_scores = {"": result}
        self.log("val/miou", result["miou"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_parts_work_in_a_module_of_a_user(tmp_path, capsys):
    images, masks = draw()
    items = [{"image": image / 255, "mask": mask} for image, mask in zip(images, masks, strict=True)]
    data = DataLoader(items, batch_size=4)
    trainer = trainer_of(tmp_path, ClassTable(NAMES), RunSummary())
    module = Plain()
    trainer.fit(module, data, data)
    assert "traffic light" in capsys.readouterr().out
    rows = (tmp_path / "runs" / "version_0" / "class_scores_val.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[2]) == pytest.approx(trainer.callback_metrics["val/miou"].item(), abs=1e-5)


def test_learning_rates_of_backbone_and_head(tmp_path):
    module = make(network=WithAux(), lr=0.01, head_lr=0.1)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer_of(tmp_path, LearningRateMonitor(), logger=logger, log_every_n_steps=1).fit(module, loader())
    groups = module.trainer.optimizers[0].param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in module.network.backbone.parameters()} == {0.01}
    assert {rates[id(p)] for p in module.network.classifier.parameters()} == {0.1}
    assert {rates[id(p)] for p in module.network.aux_classifier.parameters()} == {0.1}
