import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.utilities import CombinedLoader
from rich import get_console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.adaptation.data.pairs import DomainPairs, PairedBatchSampler, PairedLoader
from lightning_recall.adaptation.dm_ada import DMADAModule
from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.models.digits import (
    DigitDiscriminator,
    DigitEncoder,
    DigitGenerator,
    FeatureClassifier,
    GaussianEncoder,
)
from lightning_recall.adaptation.models.discriminator import FeatureDiscriminator
from lightning_recall.adaptation.scores import DomainScores
from lightning_recall.adaptation.source_only import SourceOnlyModule
from lightning_recall.callbacks import RunSummary

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*monitors val/target/accuracy, which uses labels of the target domain"),
]

K, SIZE = 3, 32
NAMES = ("zero", "one", "two")
VALIDATORS = ("information_maximization", "bnm", "negative_entropy")


def draw(count=12, seed=0):
    """Images (N, 3, 32, 32) uint8 whose brightness says the class, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (count,), generator=generator)
    images = torch.randint(80, (count, 3, SIZE, SIZE), generator=generator) + 60 * labels[:, None, None, None]
    return images.to(torch.uint8), labels


def loader(count=12, batch_size=4, seed=0, labelled=True, **kwargs):
    images, labels = draw(count, seed)
    data = TensorDataset(images, labels if labelled else torch.full_like(labels, -1))
    return DataLoader(data, batch_size=batch_size, **kwargs)


def evaluation(**kwargs):
    return {"source": loader(10, seed=5), "target": loader(7, seed=6, **kwargs)}


def training(mode="min_size", target=None, **kwargs):
    return CombinedLoader(
        {"source": loader(8, **kwargs), "target": loader(8, seed=1) if target is None else target}, mode
    )


def network(dropout=0.0):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 8, 8), nn.Tanh(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 4), nn.Tanh()]
    layers = nn.Sequential(*parts)
    layers.feature_dim = 4
    return layers


def make(kind=DANNModule, encoder=None, classifier=None, optimizer=None, **kwargs):
    torch.manual_seed(1)
    classifier = classifier or FeatureClassifier(4, K, 4)
    extra = (
        {"discriminator": FeatureDiscriminator(4, [4], norm=None), "mixup": DomainMixup()} if kind is DANNModule else {}
    )
    optimizer = optimizer or partial(torch.optim.Adam, lr=0.01)
    settings = {"num_classes": K, "optimizer": optimizer, **extra, **kwargs}
    return kind(encoder or network(), classifier, **settings)


def make_dm_ada(**kwargs):
    torch.manual_seed(0)
    encoder = GaussianEncoder(network(), latent_dim=4)
    networks = encoder, FeatureClassifier(8, K, 4), DigitGenerator(8 + K + 1 + 4, width=2), DigitDiscriminator(K, 2, 4)
    return DMADAModule(*networks, num_classes=K, noise_dim=4, **kwargs)


def trainer_of(folder, *callbacks, **kwargs):
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, callbacks=[*callbacks], **{**defaults, **quiet, **kwargs})


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def expected_scores(module, split, target_labelled=True):
    expected = {}
    for domain, (count, seed) in {"source": (10, 5), "target": (7, 6)}.items():
        images, labels = draw(count, seed)
        scores = DomainScores(K)
        scores.update(module(images), labels)
        names = ["accuracy", "mean_class_accuracy"]
        names = ["loss", *names] if domain == "source" else [*(names if target_labelled else []), *VALIDATORS]
        expected |= {f"{split}/{domain}/{name}": scores.compute()[name].item() for name in names}
    return expected


def test_scores_of_an_evaluation(tmp_path):
    module, trainer = make(), trainer_of(tmp_path)
    trainer.validate(module, evaluation(), verbose=False)
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert logged == pytest.approx(expected_scores(module, "val"), abs=1e-6)
    assert {domain: matrix.sum().item() for domain, matrix in module.confusions.items()} == {"source": 10, "target": 7}
    trainer.test(module, evaluation(labelled=False), verbose=False)
    assert set(trainer.callback_metrics) == set(expected_scores(module, "test", target_labelled=False))
    assert set(module.confusions) == {"source"}


def test_a_single_dataloader_holds_the_target(tmp_path):
    module, trainer = make(), trainer_of(tmp_path)
    (tested,) = trainer.test(module, loader(7, seed=6), verbose=False)
    expected = expected_scores(module, "test")
    assert tested == pytest.approx({key: value for key, value in expected.items() if "target" in key}, abs=1e-6)
    (tested,) = trainer.test(module, DataLoader(draw(7, 6)[0], batch_size=4), verbose=False)  # images only
    assert set(tested) == {f"test/target/{name}" for name in VALIDATORS}
    with pytest.raises(ValueError, match="got 2 dataloaders without names"):
        trainer.test(module, [loader(), loader()], verbose=False)


def test_predictions(tmp_path):
    module = make()
    images, _ = draw(7, 6)
    classes = module.eval()(images).argmax(1)
    for data in (loader(7, seed=6), DataLoader(images, batch_size=4)):
        assert torch.equal(torch.cat(trainer_of(tmp_path).predict(module, data)), classes)
    seen = []

    class Keeps(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            seen.append(outputs)

    trainer_of(tmp_path, Keeps()).validate(module, loader(7, seed=6), verbose=False)
    assert torch.equal(torch.cat([outputs["predictions"] for outputs in seen]), classes)
    assert torch.cat([outputs["features"] for outputs in seen]).shape == (7, 4)


def test_images_out_of_range_are_refused_in_prediction(tmp_path):
    with pytest.raises(ValueError, match="between 0 and 1, got values from"):
        trainer_of(tmp_path).predict(make(), DataLoader(draw(7, 6)[0].float(), batch_size=4))
    with pytest.raises(ValueError, match="predict images must be a tensor"):
        trainer_of(tmp_path).predict(make(), [{"image": draw(2)[0]}])


def test_bytes_and_floats_are_the_same():
    module, (images, _) = make(), draw(4)
    torch.testing.assert_close(module(images / 255), module(images))
    normalised = (images / 255 - 0.44) / 0.19
    plain = make(mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(plain(normalised), make(mean=(0.44,) * 3, std=(0.19,) * 3)(images))
    assert make(encoder=DigitEncoder(2)).mean == (0.44, 0.44, 0.44)
    assert make(encoder=nn.Flatten()).std == (1, 1, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(num_classes=1), "num_classes must be at least 2, got 1"),
        (lambda: make(seed=-1), "seed must be at least 0, got -1"),
        (lambda: make(std=(1, 1, 0)), "std must hold finite numbers above 0"),
        (lambda: make(class_names=["a"]), "one name for each of the 3 classes"),
        (lambda: make(classifier=FeatureClassifier(4, 5)), r"num_classes of the classifier .* is 5, but .* is 3"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (TensorDataset(draw()[0], draw()[1] + 1), draw()[0], "from 0 to 2, got labels from"),
        (TensorDataset(*draw()), draw()[0][:, :1], "same channels, height and width"),
        (TensorDataset(*draw()), draw()[0][..., :28, :28], r"\(3, 32, 32\) in the source and \(3, 28, 28\)"),
        (
            TensorDataset(draw()[0][:, :1], draw()[1]),
            draw()[0][:, :1],
            "Images have 1 channels, but mean and std",
        ),
        (TensorDataset(*draw()), draw()[0].float(), "between 0 and 1, got values from"),
        (draw()[0], draw()[0], "A training batch must be"),
        (TensorDataset(draw()[0], draw()[1].float()), draw()[0], "Labels must be integers, got torch.float32"),
    ],
)
def test_bad_training_data(source, target, message, tmp_path):
    loaders = {"source": DataLoader(source, batch_size=6), "target": DataLoader(target, batch_size=6)}
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path).fit(make(encoder=DigitEncoder(2)), CombinedLoader(loaders))


@pytest.mark.parametrize("kind", [SourceOnlyModule, DANNModule])
def test_num_classes_must_fit_the_network_and_the_data(kind, tmp_path):
    classifier = nn.Linear(4, K + 1)  # says nothing about its classes
    with pytest.raises(ValueError, match=r"classifier must return logits of shape \(4, 3\)"):
        trainer_of(tmp_path).fit(make(kind, classifier=classifier), training())
    with pytest.raises(ValueError, match=r"classifier must return logits of shape \(4, 3\)"):
        trainer_of(tmp_path).test(make(kind, classifier=classifier), evaluation())
    with pytest.raises(ValueError, match=r"from 0 to 1, or -1 .* got labels from 0 to 2"):
        trainer_of(tmp_path).test(make(kind, classifier=nn.Linear(4, 2), num_classes=2), evaluation())


class Data(LightningDataModule):
    num_classes, class_names = K, NAMES

    def train_dataloader(self):
        return training()

    def val_dataloader(self):
        return evaluation()


def test_the_data_module_is_compared(tmp_path):
    module = make()
    trainer_of(tmp_path).validate(module, datamodule=Data(), verbose=False)
    assert module.class_names == NAMES
    given = make(class_names=("a", "b", "c"))
    trainer_of(tmp_path).validate(given, datamodule=Data(), verbose=False)
    assert given.class_names == ("a", "b", "c")
    other = Data()
    other.num_classes = 4
    with pytest.raises(ValueError, match=r"num_classes of the data module \(Data\) is 4, but that of DANNModule is 3"):
        trainer_of(tmp_path).fit(make(), datamodule=other)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
@pytest.mark.parametrize("kind", [SourceOnlyModule, partial(DANNModule, mixup=None)])
def test_plain_dataloaders_of_different_length(kind, mode, labelled, tmp_path):
    """Batches of 4 and 4, 4 and 2 images, or 2 and 4 images: a loss is the mean over each domain."""
    source, target = loader(10), loader(6, seed=1)
    if not labelled:
        target = DataLoader(draw(6, 1)[0], batch_size=4)
    settings = {} if kind is SourceOnlyModule else {"discriminator": FeatureDiscriminator(4, [4], norm=None)}
    module = kind(network(), FeatureClassifier(4, K, 4), num_classes=K, **settings)
    trainer = trainer_of(tmp_path)
    trainer.fit(module, CombinedLoader({"source": source, "target": target}, mode))
    assert trainer.global_step == {"min_size": 2, "max_size_cycle": 3}[mode]
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_mixing_needs_equal_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"equal shapes|equally many"):
        trainer_of(tmp_path).fit(make(), training(target=loader(6, seed=1)))


def test_other_combinations_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r'pass CombinedLoader\(\{"source": loader, "target": loader\}'):
        trainer_of(tmp_path).fit(make(), loader())
    with pytest.raises(ValueError, match="'source': a list of 2, 'target': a NoneType"):
        trainer_of(tmp_path).fit(make(SourceOnlyModule), training("max_size", target=loader(4, seed=1)))


@pytest.mark.parametrize("kind", [SourceOnlyModule, DANNModule])
def test_a_batch_of_one_image(kind, tmp_path):
    one = CombinedLoader({"source": loader(1), "target": loader(1, seed=1)})
    trainer = trainer_of(tmp_path)
    trainer.fit(make(kind), one)
    assert trainer.global_step == 1
    with pytest.raises(ValueError, match="BatchNorm cannot be trained on a single image"):
        trainer_of(tmp_path).fit(make(kind, encoder=nn.Sequential(network(), nn.BatchNorm1d(4))), one)


def test_an_empty_domain_says_so(tmp_path):
    empty = DataLoader(TensorDataset(*draw(4)), batch_size=8, drop_last=True)
    with (
        pytest.warns(UserWarning, match="Total length of `(DataLoader|CombinedLoader)` across ranks is zero"),
        pytest.raises(ValueError, match="no training batch: a domain has no images, or fewer than batch_size"),
    ):
        trainer_of(tmp_path).fit(make(), training(target=empty))
    with (
        pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"),
        pytest.warns(UserWarning, match="was called before the ``update`` method"),
        pytest.raises(ValueError, match="The target dataloader of the val split has no images"),
    ):
        trainer_of(tmp_path).validate(make(), {"source": loader(), "target": empty})


class Log(Callback):
    """Keeps the losses of each batch."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append({key: value.item() for key, value in trainer.callback_metrics.items() if "train/" in key})


def train_with_target_labels(folder, build, change, monitor):
    """Trains with other labels of the target, in training and validation; returns all that must not depend on them."""
    seed_everything(0, verbose=False)
    images, labels = draw(8, 1)
    val_images, val_labels = draw(7, 6)
    target = DataLoader(TensorDataset(images, change(labels)), batch_size=4)
    val = {"source": loader(10, seed=5), "target": DataLoader(TensorDataset(val_images, change(val_labels)))}
    log, saving = Log(), ModelCheckpoint(folder, monitor=monitor, mode="max" if monitor else "min")
    trainer = trainer_of(folder, log, saving, enable_checkpointing=True, max_epochs=3, num_sanity_val_steps=-1)
    module = build()
    trainer.fit(module, training(target=target, shuffle=True), val)
    kept = torch.load(saving.best_model_path)["state_dict"]
    accuracies = [validation.scores["val/target/accuracy"] for validation in module.history.validations]
    choice = saving.best_model_path.rpartition("/")[2], saving.best_model_score
    return weights(module), log.rows, choice, kept, accuracies


@pytest.mark.parametrize(
    ("build", "monitor"),
    [(make, None), (make, "val/source/accuracy"), (make, "val/target/bnm"), (make_dm_ada, "val/target/bnm")],
)
def test_target_labels_cannot_leak(build, monitor, tmp_path):
    runs = [
        train_with_target_labels(tmp_path / str(number), build, change, monitor)
        for number, change in enumerate([lambda labels: labels, lambda labels: (labels + 1) % K])
    ]
    (first, log, choice, kept, accuracies), (second, other_log, other_choice, other_kept, other_accuracies) = runs
    assert_equal(second, first)
    assert_equal(other_kept, kept)
    assert len(log) == 6
    assert log == other_log
    assert choice == other_choice
    assert accuracies != other_accuracies  # the labels differ


class Poison:
    """A label that cannot be read."""

    def __getattribute__(self, name):
        raise AssertionError("a target label is read")


class Poisoned:
    """Images with such labels."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return draw(8, 1)[0][index], Poison()


@pytest.mark.parametrize("build", [make, make_dm_ada], ids=["DANN", "DM-ADA"])
def test_a_data_set_with_unreadable_target_labels_trains(build, tmp_path):
    data = DomainPairs(TensorDataset(*draw(8)), Poisoned())
    trainer, module = trainer_of(tmp_path), build()
    before = weights(module)
    trainer.fit(module, PairedLoader(data, PairedBatchSampler(8, 8, 4)))
    assert any(not torch.equal(value, before[name]) for name, value in weights(module).items())


@pytest.mark.parametrize(
    ("monitor", "mode", "loaders", "message"),
    [
        ("val/target/acuracy", "max", True, "Did you mean 'val/target/accuracy'"),
        ("val/accuracy", "max", True, "which is not logged"),
        ("val/target/bnm", "min", True, 'set mode="max"'),
        ("val/source/loss", "max", True, 'set mode="min"'),
        ("val/source/accuracy", "max", False, "but there is no validation"),
    ],
)
def test_monitors_are_checked_before_training(monitor, mode, loaders, message, tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor=monitor, mode=mode)
    trainer = trainer_of(tmp_path, saving, enable_checkpointing=True, num_sanity_val_steps=1)
    with pytest.raises(ValueError, match=message):
        trainer.fit(make(), training(), *[evaluation()] * loaders)


def test_choosing_by_target_labels_is_said(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="val/target/accuracy", mode="max")
    trainer = trainer_of(tmp_path, saving, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="ModelCheckpoint monitors val/target/accuracy, which uses labels of the tar"):
        trainer.fit(make(), training(), evaluation())
    assert saving.best_model_score is not None
    saving = ModelCheckpoint(tmp_path / "unlabelled", monitor="val/target/accuracy", mode="max")
    with pytest.raises(ValueError, match="the validation images of the target have no labels"):
        trainer_of(tmp_path, saving, enable_checkpointing=True).fit(make(), training(), evaluation(labelled=False))


def test_the_tables_before_and_after_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(get_console(), "_width", 120)
    module = make(class_names=NAMES)
    saving = ModelCheckpoint(tmp_path, monitor="val/target/information_maximization", mode="max")
    settings = {"enable_checkpointing": True, "max_epochs": 3, "num_sanity_val_steps": -1}
    trainer_of(tmp_path, RunSummary(), saving, **settings).fit(module, training(), evaluation())
    shown = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line.split("│")[2:] for line in shown.splitlines() if line.count("│") > 2}
    assert lines["method"][0].strip() == "DANN"
    assert lines["batch"][0].strip() == "4 source and 4 target images"
    assert "source accuracy" in shown
    assert "target IM" in shown
    for row, scored in (("before training", make()), ("last, after 3 epochs", module)):
        expected = expected_scores(scored.eval(), "val")
        keys = ("val/source/accuracy", "val/target/accuracy", "val/target/information_maximization")
        percents = [f"{100 * expected[key]:.1f}" for key in keys[:2]]
        assert [cell.strip() for cell in lines[row][:3]] == [*percents, f"{expected[keys[2]]:.3f}"]
    assert any(row.startswith("best, after") for row in lines)
    assert "Last validation" not in shown
    assert "zero" in shown
    assert list(tmp_path.glob("runs/version_0/domain_scores_val*.csv"))


def test_a_short_sanity_check_scores_nothing(tmp_path):
    module = make()
    trainer_of(tmp_path, num_sanity_val_steps=1).fit(module, training(), evaluation())
    assert module.history.baselines == {}
    trainer_of(tmp_path).validate(module, evaluation(), verbose=False)  # no part of the training
    assert len(module.history.validations) == 1
    trainer_of(tmp_path, num_sanity_val_steps=1, check_val_every_n_epoch=2).fit(module, training(), evaluation())
    assert module.confusions == {}  # not those of an earlier evaluation


def test_a_checkpoint_rebuilds_the_module(tmp_path):
    module, trainer = make(class_names=NAMES, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)), trainer_of(tmp_path)
    trainer.fit(module, training(), evaluation())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    arguments = {"encoder": network(), "classifier": FeatureClassifier(4, K, 4), "num_classes": K}
    arguments |= {"discriminator": FeatureDiscriminator(4, [4], norm=None)}
    loaded = DANNModule.load_from_checkpoint(tmp_path / "a.ckpt", **arguments)
    images, _ = draw(2)
    assert torch.equal(loaded.eval()(images), module.eval()(images))
    assert loaded.class_names == NAMES
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert loaded.history.validations == module.history.validations
    assert DANNModule.load_from_checkpoint(tmp_path / "a.ckpt", **arguments, mean=(0, 0, 0)).mean == (0, 0, 0)


class ReorderedData(Data):
    class_names = NAMES[::-1]


def test_data_with_the_classes_in_another_order_are_refused(tmp_path):
    module, trainer = make(), trainer_of(tmp_path)
    trainer.fit(module, datamodule=Data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="another order: class 0 is 'zero' for the network, but 'two' in the data"):
        trainer_of(tmp_path).validate(module, datamodule=ReorderedData())
    for run in (trainer_of(tmp_path).validate, trainer_of(tmp_path, max_epochs=2).fit):
        with pytest.raises(ValueError, match="another order: class 0 is 'zero' for the network, but 'two' in the data"):
            run(make(), datamodule=ReorderedData(), ckpt_path=tmp_path / "a.ckpt", weights_only=False)


class SavesEach(Callback):
    """Saves after each batch and each validation."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            torch.manual_seed(7)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"batch{trainer.fit_loop.total_batch_idx + 1}.ckpt")

    def on_validation_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"val{trainer.current_epoch}.ckpt")


def resumable(folder, build, ckpt_path=None):
    """Trains for three epochs of two batches, with dropout, BatchNorm, and averaged weights."""
    folder.mkdir(exist_ok=True)
    seed_everything(3, verbose=False)
    module = build()
    trainer = trainer_of(folder, SavesEach(folder), EMAWeightAveraging(decay=0.7), max_epochs=3)
    data = PairedLoader(DomainPairs(TensorDataset(*draw(8)), draw(8, 1)[0]), PairedBatchSampler(8, 8, 4))
    trainer.fit(module, data, evaluation(), ckpt_path=ckpt_path)
    return weights(module), module.history.validations


def make_noisy():
    return make(encoder=nn.Sequential(network(0.3), nn.BatchNorm1d(4)))


@pytest.mark.parametrize(
    ("build", "checkpoint"),
    [(make_noisy, "batch1"), (make_noisy, "val1"), (make_noisy, "batch5"), (make_dm_ada, "batch3")],
)
def test_a_resumed_training_ends_like_an_uninterrupted_one(build, checkpoint, tmp_path):
    expected, validations = resumable(tmp_path / "whole", build)
    torch.rand(5)  # another state of the generators
    actual, resumed = resumable(tmp_path / "resumed", build, tmp_path / "whole" / f"{checkpoint}.ckpt")
    assert_equal(actual, expected)
    assert resumed == validations
    assert len(validations) == 3


class Notes(Callback):
    """Writes the scores of each process to its own file."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, trainer, pl_module):
        scores = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        notes = {"scores": scores, "confusions": {name: part.tolist() for name, part in pl_module.confusions.items()}}
        (self.folder / f"{trainer.world_size}_{trainer.global_rank}.json").write_text(json.dumps(notes))
        trainer.strategy.barrier()


@pytest.mark.parametrize("devices", [2, 3])
def test_processes_score_like_one(devices, tmp_path):
    notes = []
    for number in (1, devices):
        strategy = "ddp_fork" if number > 1 else "auto"
        trainer = trainer_of(tmp_path, Notes(tmp_path), devices=number, strategy=strategy, precision="64-true")
        trainer.validate(make().double(), {"source": loader(2, seed=5), "target": loader(7, seed=6)}, verbose=False)
        notes += [json.loads((tmp_path / f"{number}_{rank}.json").read_text()) for rank in range(number)]
    for note in notes[1:]:
        assert note["confusions"] == notes[0]["confusions"]
        assert note["scores"] == pytest.approx(notes[0]["scores"], abs=1e-9)


def test_new_layers_may_have_their_own_rate():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4))
    encoder.backbone = encoder[1]
    module = make(encoder=encoder, head_lr=0.1, optimizer=partial(torch.optim.SGD, lr=0.01))
    (optimizer,), _ = module.configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in encoder.parameters()} == {0.01}
    assert {rates[id(p)] for part in (module.classifier, module.discriminator) for p in part.parameters()} == {0.1}


def test_the_loss_falls(tmp_path):
    module = make(SourceOnlyModule)
    before = F.cross_entropy(module(draw(8)[0]), draw(8)[1])
    trainer_of(tmp_path, max_epochs=20).fit(module, training())
    assert F.cross_entropy(module(draw(8)[0]), draw(8)[1]) < 0.7 * before
