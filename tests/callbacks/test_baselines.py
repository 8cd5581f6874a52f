import csv

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RetrievalEvaluation
from lightning_recall.metrics import RetrievalScores

LABELS = torch.arange(40) // 4
IMAGES = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Embeds(pl.LightningModule):
    """A module with a backbone and a head."""

    def __init__(self, lr=0.01, is_pretrained=True):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.backbone, self.head = nn.Sequential(nn.Flatten(), nn.Linear(9, 7)), nn.Linear(7, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.is_pretrained, self.lr = is_pretrained, lr
        self.passes = 0

    def features(self, images):
        self.passes += 1
        return self.backbone(images)

    def forward(self, images):
        return self.head(images if images.ndim == 2 else self.features(images))

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"embeddings": self(batch[0])}

    test_step = validation_step

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def loader(images=IMAGES):
    return DataLoader(TensorDataset(images, LABELS), batch_size=12)


def trainer(tmp_path, *callbacks, **kwargs):
    return pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        enable_progress_bar=False,
        **{"devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False, **kwargs},
    )


def scores_of(embeddings, ks=(1, 2)):
    metric = RetrievalScores(("recall", "map@r"), ks)
    metric.update(embeddings.detach(), LABELS)
    return {name: score.item() for name, score in metric.compute().items()}


def approx(scores, prefix):
    return {f"{prefix}{name}": pytest.approx(score) for name, score in scores.items()}


@pytest.mark.parametrize("devices", [1, 2])
def test_fit_starts_with_the_scores_of_the_whole_validation_set(devices, tmp_path, capfd):
    module, first = Embeds(), Embeds()
    logger = CSVLogger(tmp_path, "logs")
    evaluation = RetrievalEvaluation(ks=(1, 2), baselines=True)
    several = {"devices": 2, "strategy": "ddp_fork"} if devices == 2 else {}
    trainer(tmp_path, evaluation, logger=logger, **several).fit(module, loader(), loader())
    expected = {
        **approx(scores_of(first.features(IMAGES)), "val/pretrained/"),
        **approx(scores_of(first(IMAGES)), "val/untrained/"),
    }
    with (tmp_path / "logs/version_0/metrics.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["val/pretrained/recall@1"])
    assert {name: float(row[name]) for name in expected} == expected
    assert row["step"] == "0"
    shown = capfd.readouterr().out
    assert shown.count("Before training: retrieval on the val split, in %") == 1
    assert shown.index("pretrained features") < shown.index("before training ")


def test_validation_during_training_costs_no_more(tmp_path):
    passes = {}
    for baselines in (False, True):
        module = Embeds()
        trained = trainer(tmp_path, RetrievalEvaluation(baselines=baselines), max_epochs=3, num_sanity_val_steps=2)
        trained.fit(module, loader(), loader())
        passes[baselines] = module.passes
        assert trained.num_sanity_val_steps == 2
    # without: 2 batches of the sanity check; with: all 4, and their features
    assert passes[True] - passes[False] == 2 * 4 - 2


def test_without_a_sanity_check_nothing_is_scored_before_training(tmp_path, capsys):
    evaluation = RetrievalEvaluation(baselines=True)
    trainer(tmp_path, evaluation, num_sanity_val_steps=0).fit(Embeds(), loader(), loader())
    assert evaluation.history.baselines == {}
    assert "Before training" not in capsys.readouterr().out


@pytest.mark.parametrize("is_pretrained", [True, False])
def test_features_of_random_weights_are_not_called_pretrained(is_pretrained, tmp_path):
    evaluation = RetrievalEvaluation(baselines=True)
    trainer(tmp_path, evaluation).fit(Embeds(is_pretrained=is_pretrained), loader(), loader())
    first = "pretrained features" if is_pretrained else "backbone before training"
    assert list(evaluation.history.baselines) == [first, "before training"]


def test_an_embedder_without_a_new_layer_has_one_baseline(tmp_path):
    module = Embeds()
    module.head = nn.Identity()
    evaluation = RetrievalEvaluation(ks=(1,), baselines=True)
    tester = trainer(tmp_path, evaluation)
    tester.fit(module, loader(), loader())
    assert list(evaluation.history.baselines) == ["pretrained features"]
    scores = tester.test(module, loader(), verbose=False)[0]
    assert "test/untrained/recall@1" not in scores
    assert scores["test/pretrained/recall@1"] == evaluation.history.baselines["pretrained features"]["val/recall@1"]


def test_a_module_without_features_has_the_embedder_as_baseline(tmp_path):
    class Plain(Embeds):
        features = None

        def forward(self, images):
            return self.head(self.backbone(images))

    evaluation = RetrievalEvaluation(ks=(1,), baselines=True)
    tester = trainer(tmp_path, evaluation)
    tester.fit(Plain(), loader(), loader())
    assert list(evaluation.history.baselines) == ["before training"]
    assert "test/pretrained/recall@1" not in tester.test(Plain(), loader(), verbose=False)[0]


def test_a_resumed_training_keeps_the_first_scores(tmp_path, capsys):
    first = RetrievalEvaluation(baselines=True)
    short = trainer(tmp_path, first)
    short.fit(Embeds(), loader(), loader())
    short.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    shown = capsys.readouterr().out
    resumed = RetrievalEvaluation(baselines=True)
    module = Embeds()
    longer = trainer(tmp_path, resumed, max_epochs=2)
    longer.fit(module, loader(), loader(), ckpt_path=tmp_path / "one.ckpt")
    assert resumed.history.baselines == first.history.baselines
    assert [validation.epochs for validation in resumed.history.validations] == [1, 2]
    assert module.passes == 2 + 4 + 4  # sanity check, epoch and validation: the baselines are not computed again
    assert "Before training" in shown
    assert "Before training" not in capsys.readouterr().out


def test_the_test_scores_the_first_weights_after_a_checkpoint(tmp_path):
    first = Embeds()
    saved = trainer(tmp_path)
    saved.fit(trained := Embeds(), loader())
    saved.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    evaluation = RetrievalEvaluation(ks=(1, 2), baselines=True)
    results = trainer(tmp_path, evaluation).test(Embeds(), loader(), tmp_path / "one.ckpt", verbose=False)[0]
    assert results == {
        **approx(scores_of(IMAGES.flatten(1)), "test/pixels/"),
        **approx(scores_of(first.features(IMAGES)), "test/pretrained/"),
        **approx(scores_of(first(IMAGES)), "test/untrained/"),
        **approx(scores_of(trained(IMAGES)), "test/"),
    }
    assert scores_of(first.features(IMAGES)) != scores_of(trained.features(IMAGES))


def test_inputs_that_are_features_have_no_pixels(tmp_path):
    features = torch.randn(40, 7)
    evaluation = RetrievalEvaluation(ks=(1, 2), baselines=True)
    results = trainer(tmp_path, evaluation).test(Embeds(), loader(features), verbose=False)[0]
    assert not any(name.startswith("test/pixels") for name in results)
    assert results["test/pretrained/recall@2"] == pytest.approx(scores_of(features)["recall@2"])


class Finds(Embeds):
    """Its features are exact: each class has its own direction."""

    def features(self, images):
        self.passes += 1
        return images.flatten(1) @ self.backbone[1].weight.T


def of_classes():
    """Images whose classes are easy."""
    centres = torch.randn(10, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    return centres[LABELS] + 0.01 * IMAGES


@pytest.mark.parametrize("fast_dev_run", [False, True])
def test_a_training_below_its_start_says_so_at_the_end(fast_dev_run, tmp_path, capsys):
    class Worse(Finds):
        def on_train_batch_end(self, *_):
            with torch.no_grad():
                self.head.weight.zero_()  # all embeddings are the bias

    data = loader(of_classes())
    module = Worse(lr=0.001)
    worse = trainer(tmp_path, RetrievalEvaluation(baselines=True), fast_dev_run=fast_dev_run, max_epochs=2)
    worse.fit(module, data, data)
    shown = " ".join(capsys.readouterr().out.split())
    assert ("The training did not beat the pretrained features: R@1 0.0 at best" in shown) != fast_dev_run
    assert ("100.0 without training" in shown) != fast_dev_run
    assert ("a lower learning rate (now 0.001)" in shown) != fast_dev_run
    worse.test(module, data, verbose=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "The model is below the pretrained features that it started from: R@1 0.0, 100.0 without" in shown


def test_a_training_above_its_start_says_nothing(tmp_path, capsys):
    data = loader(of_classes())
    module = Finds(lr=0.0)
    same = trainer(tmp_path, RetrievalEvaluation(baselines=True))
    same.fit(module, data, data)
    same.test(module, data, verbose=False)
    shown = capsys.readouterr().out
    assert "without training" not in shown


def test_a_test_of_a_trained_backbone_without_a_new_layer_says_so_if_it_is_worse(tmp_path, capsys):
    module = Embeds()
    module.head = nn.Identity()
    easy = loader(IMAGES + 5 * nn.functional.one_hot(LABELS % 9, 9).reshape(40, 1, 3, 3))
    tester = trainer(tmp_path, RetrievalEvaluation(ks=(1,), baselines=True))
    tester.test(module, easy, verbose=False)
    assert "The model is below" not in capsys.readouterr().out  # not trained
    nn.init.zeros_(module.backbone[1].weight)
    tester.test(module, easy, verbose=False)
    assert "The model is below the pretrained features that it started from" in capsys.readouterr().out
