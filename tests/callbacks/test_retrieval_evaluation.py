import csv

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtK, RetrievalEvaluation
from lightning_recall.callbacks.retrieval_evaluation import results_of
from lightning_recall.metrics import RetrievalScores

LABELS = torch.arange(40) // 4
IMAGES = torch.randn(40, 1, 3, 3)


class TheirModule(pl.LightningModule):
    """Steps that return nothing, or something else than embeddings."""

    def __init__(self, output=None):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(9, 5))
        self.output = output
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.net(images)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"embeddings": self(batch[0])} if self.output == "embeddings" else self.output

    test_step = validation_step

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def loader(labels=LABELS, images=IMAGES):
    return DataLoader(TensorDataset(images, labels), batch_size=12)


def make_trainer(*callbacks, **kwargs):
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **kwargs,
    )


def scores_of(embeddings, labels=LABELS, ks=(1, 2)):
    metric = RecallAtK(ks)
    metric.update(embeddings, labels)
    return metric.compute()


@pytest.mark.parametrize("output", [None, "embeddings", torch.tensor(3.0), {"loss": torch.tensor(3.0)}])
def test_logs_the_metric_of_any_module(output):
    module = TheirModule(output)
    results = make_trainer(RetrievalEvaluation(ks=(1, 2))).test(module, loader(), verbose=False)[0]
    assert module.calls == 4  # returned embeddings are not computed again
    expected = scores_of(module.net(IMAGES))
    assert results == {f"test/{name}": pytest.approx(value.item()) for name, value in expected.items()}


def test_logits_that_a_step_returns_are_not_taken_for_embeddings():
    class Classifier(TheirModule):
        def test_step(self, batch, batch_idx):
            return torch.zeros(len(batch[0]), 3)

    module = Classifier()
    results = make_trainer(RetrievalEvaluation(ks=(2,))).test(module, loader(), verbose=False)[0]
    assert results["test/recall@2"] == pytest.approx(scores_of(module.net(IMAGES), ks=(2,))["recall@2"].item())


def test_scores_during_training_skip_the_sanity_check():
    evaluation = RetrievalEvaluation(ks=(1, 2))
    trainer, module = make_trainer(evaluation), TheirModule()
    one_each = loader(torch.tensor([*range(12), *range(12), *range(12), *range(4)]))  # a first batch without a pair
    trainer.fit(module, loader(), one_each)
    expected = scores_of(module.net(IMAGES), torch.cat([labels for _, labels in one_each]))
    assert trainer.callback_metrics["val/recall@1"] == pytest.approx(expected["recall@1"].item())


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_baselines_are_the_pixels_and_the_first_weights():
    evaluation, module = RetrievalEvaluation(ks=(1, 2), baselines=True), TheirModule()
    before = scores_of(module.net(IMAGES))
    trainer = make_trainer(evaluation, limit_val_batches=0)
    trainer.fit(module, loader())
    after = scores_of(module.net(IMAGES))
    results = trainer.test(module, loader(), verbose=False)[0]
    for name, expected in (("untrained/", before), ("", after), ("pixels/", scores_of(IMAGES.flatten(1)))):
        assert results[f"test/{name}recall@2"] == pytest.approx(expected["recall@2"].item())
    torch.testing.assert_close(scores_of(module.net(IMAGES)), after)  # the weights are the trained ones again
    (kept,) = evaluation.results  # pictures are of what the model found
    assert torch.equal(kept.searched.embeddings, module.net(IMAGES).detach())


def test_the_table_shows_percent(capsys):
    make_trainer(RetrievalEvaluation(ks=(1, 2), baselines=True)).test(TheirModule(), loader(), verbose=False)
    shown = capsys.readouterr().out
    assert "Retrieval on the test split, in %" in shown
    assert "searched in" in shown
    assert [row in shown for row in ("R@1", "raw pixels", "before training", "model")] == [True] * 4


def test_several_dataloaders_have_their_own_scores():
    module = TheirModule()
    shifted = loader(LABELS.roll(2))
    results = make_trainer(RetrievalEvaluation(ks=(2,))).test(module, [loader(), shifted], verbose=False)
    merged = {key: value for result in results for key, value in result.items()}
    for index, labels in enumerate((LABELS, LABELS.roll(2))):
        expected = scores_of(module.net(IMAGES), labels)["recall@2"].item()
        assert merged[f"test/{index}/recall@2"] == pytest.approx(expected)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="ks must be"):
        RetrievalEvaluation(ks=(0,))

    class GivesMaps(TheirModule):
        def forward(self, images):
            return images

    with pytest.raises(ValueError, match=r"forward of GivesMaps must give embeddings \(12, D\)"):
        make_trainer(RetrievalEvaluation()).test(GivesMaps(), loader(), verbose=False)
    with pytest.raises(ValueError, match=r"pair \(inputs, labels\), got a Tensor"):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), DataLoader(IMAGES), verbose=False)
    triples = DataLoader(TensorDataset(IMAGES, LABELS, LABELS), batch_size=9)
    with pytest.raises(ValueError, match="got a list of 3"):
        make_trainer(RetrievalEvaluation(baselines=True)).test(TheirModule(), triples, verbose=False)
    with pytest.raises(ValueError, match="None of the 40 items has another of its class"):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), loader(torch.arange(40)), verbose=False)


def test_nan_embeddings_are_refused():
    images = IMAGES.clone()
    images[7] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), loader(images=images), verbose=False)


class Told(TensorDataset):
    """Even rows search, odd ones are searched; the last two could not be read."""

    def __init__(self):
        labels = LABELS.clone()
        labels[-2:] = -100
        super().__init__(IMAGES, labels)
        self.is_query = np.arange(40) % 2 == 0
        self.is_gallery = ~self.is_query


def test_named_dataloaders_with_queries_and_gallery(capsys):
    module = TheirModule()
    loaders = {"all": loader(), "shop": DataLoader(Told(), batch_size=12)}
    results = make_trainer(RetrievalEvaluation(ks=(1, 2))).test(module, loaders, verbose=False)
    scores = {key: value for result in results for key, value in result.items()}
    metric = RecallAtK((1, 2))
    is_query = torch.from_numpy(Told().is_query)[:-2]
    metric.update(module.net(IMAGES)[:-2], LABELS[:-2], None, is_query, ~is_query)
    expected = {f"test/shop/{name}": pytest.approx(value.item()) for name, value in metric.compute().items()}
    expected |= {f"test/all/{name}": pytest.approx(v.item()) for name, v in scores_of(module.net(IMAGES)).items()}
    assert scores == expected
    shown = capsys.readouterr().out
    assert "model on shop" in shown
    assert "model on all" in shown


class InGroups(TensorDataset):
    groups = np.arange(40) % 3
    paths = np.array([f"images/{i}.jpg".encode() for i in range(40)])

    def __init__(self):
        super().__init__(IMAGES, LABELS)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_other_scores_groups_and_tables(tmp_path, capsys):
    module, evaluation = TheirModule(), RetrievalEvaluation((1,), ("recall", "map@r", "mrr"), tables=True)
    trainer = make_trainer(evaluation, default_root_dir=tmp_path)
    results = trainer.test(module, DataLoader(InGroups(), batch_size=12), verbose=False)[0]
    metric = RetrievalScores(("recall", "map@r", "mrr"), (1,))
    metric.update(module.net(IMAGES), LABELS, torch.arange(40), groups=torch.arange(40) % 3)
    assert results == {f"test/{name}": pytest.approx(value.item()) for name, value in metric.compute().items()}
    assert str(tmp_path / "runs/version_0/test_queries.csv") in capsys.readouterr().out
    with (tmp_path / "runs/version_0/test_queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = metric.search()
    assert [int(row["index"]) for row in rows] == found.queries.tolist()
    assert [int(row["first_rank"]) for row in rows] == found.first_ranks.tolist()
    assert [float(row["map@r"]) for row in rows] == pytest.approx(found.scores["map@r"].tolist(), rel=1e-5)
    assert rows[7]["path"] == f"images/{rows[7]['index']}.jpg"
    with (tmp_path / "runs/version_0/test_classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [int(row["label"]) for row in classes] == list(range(10))
    assert sum(float(row["mrr"]) * int(row["queries"]) for row in classes) / len(rows) == pytest.approx(
        results["test/mrr"], rel=1e-5
    )
    trainer.fit(module, loader())
    assert evaluation.results == []  # embeddings are not kept through a training


def test_a_dataloader_without_a_batch_is_told():
    empty = DataLoader(TensorDataset(IMAGES[:0], LABELS[:0]), batch_size=12)
    with (
        pytest.raises(ValueError, match="no batch came from dataloader small"),
        pytest.warns(UserWarning, match="length"),
    ):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), {"all": loader(), "small": empty}, verbose=False)


def test_who_needs_it_says_so():
    class Other(pl.Callback):
        pass

    with pytest.raises(ValueError, match=r"Other shows what RetrievalEvaluation finds: add RetrievalEvaluation\(\)"):
        results_of(make_trainer(), Other())
