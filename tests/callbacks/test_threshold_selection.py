import csv

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalEvaluation, RetrievalModule
from lightning_recall.callbacks import ThresholdSelection
from lightning_recall.callbacks import threshold_selection as selection_module
from lightning_recall.metrics import VerificationScores

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(60) // 5
VECTORS = torch.randn(12, 6, generator=GENERATOR)[LABELS] + 0.5 * torch.randn(60, 6, generator=GENERATOR)
TEST_VECTORS = VECTORS + 0.3 * torch.randn(60, 6, generator=GENERATOR)


class Plain(pl.LightningModule):
    """A module that does not know of thresholds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(6, 4)

    def forward(self, vectors):
        return self.layer(vectors)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def ours():
    torch.manual_seed(1)
    return RetrievalModule(nn.Linear(6, 4), RecallAtKLoss((1, 2)), chunk_size=16, optimizer=sgd)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def loader(vectors=VECTORS, labels=LABELS, **kwargs):
    return DataLoader(TensorDataset(vectors, labels), batch_size=20, **kwargs)


def make_trainer(folder, *callbacks, **kwargs):
    settings = {"devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False, **kwargs}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        callbacks=list(callbacks),
        **settings,
    )


def verification(module, vectors=VECTORS, rates=(0.01,), thresholds=(), labels=LABELS):
    metric = VerificationScores(rates)
    with torch.no_grad():
        metric.update(module(vectors), labels)
    return metric.verify(thresholds, with_f1=True)


@pytest.mark.filterwarnings(
    "ignore:RecallAtKLoss expects unit-norm embeddings",
    "ignore:Be aware that when using `ckpt_path`",  # ModelCheckpoint has a state
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
)
@pytest.mark.parametrize("make_module", [ours, Plain])
def test_each_checkpoint_holds_the_threshold_of_its_weights(make_module, tmp_path):
    module = make_module()
    checkpoints = ModelCheckpoint(
        tmp_path, "{epoch}", monitor="val/tar@far=0.01", mode="max", save_top_k=-1, save_last=True
    )
    trainer = make_trainer(
        tmp_path,
        ThresholdSelection(0.01),
        RetrievalEvaluation((1,)),
        checkpoints,
        enable_checkpointing=True,
        max_epochs=2,
    )
    trainer.fit(module, loader(), loader())
    for epoch in range(2):
        checkpoint = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        then = make_module()
        then.load_state_dict(checkpoint["state_dict"])
        point = verification(then).at_false_accept_rate[0.01]
        assert checkpoint["similarity_threshold"] == {
            "similarity": pytest.approx(point.threshold, abs=1e-6),
            "false_accept_rate": point.false_accept_rate,
            "true_accept_rate": point.true_accept_rate,
            "split": "val",
        }
    assert module.similarity_threshold == checkpoint["similarity_threshold"]
    assert trainer.callback_metrics["val/threshold"] == pytest.approx(point.threshold, abs=1e-6)
    assert trainer.callback_metrics["val/tar@far=0.01"] == pytest.approx(point.true_accept_rate)
    first = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["similarity_threshold"]
    assert first != module.similarity_threshold
    tester = make_trainer(tmp_path, ThresholdSelection(0.01), RetrievalEvaluation((1,)))
    (scores,) = tester.test(make_module(), loader(TEST_VECTORS), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    tested = make_module()
    tested.load_state_dict(torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"])
    _, far, tar = verification(tested, TEST_VECTORS, (), (first["similarity"],)).at_threshold[first["similarity"]]
    assert scores["test/tar@threshold"] == pytest.approx(tar)
    assert scores["test/far@threshold"] == pytest.approx(far)
    resumed = make_trainer(
        tmp_path, ThresholdSelection(0.01), RetrievalEvaluation((1,)), max_epochs=2, limit_val_batches=0
    )
    continued = make_module()
    resumed.fit(continued, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert continued.similarity_threshold == first  # without validation, the last one is kept


@pytest.mark.parametrize("criterion", [0.05, "eer", "f1"])
def test_criteria(criterion, tmp_path, capsys):
    module, selection = Plain(), ThresholdSelection(criterion)
    trainer = make_trainer(tmp_path, selection, RetrievalEvaluation((1,)))
    (scores,) = trainer.validate(module, loader(), verbose=False)
    result = verification(module, rates=(0.05,))
    points = {0.05: result.at_false_accept_rate[0.05], "eer": result.equal_error, "f1": result.best_f1}
    assert scores["val/threshold"] == pytest.approx(points[criterion].threshold)
    assert module.similarity_threshold["similarity"] == pytest.approx(points[criterion].threshold)
    score = result.f1 if criterion == "f1" else points[criterion].true_accept_rate
    assert scores[f"val/{selection.score}"] == pytest.approx(score)
    assert selection.logged_keys(trainer) == [f"val/{selection.score}"]
    shown = capsys.readouterr().out
    assert "Verification on the val split" in shown
    assert "120 pairs of the same class, 1,650 of different classes" in shown
    assert next(line for line in shown.splitlines() if "0.0001 %" in line).count("- ") == 3


def test_the_test_prints_a_table_and_draws_curves(tmp_path, capsys, monkeypatch):
    module = Plain()
    drawn = []
    monkeypatch.setattr(selection_module, "draw_verification", lambda _, points: drawn.append(points) or Figure())
    trainer = make_trainer(tmp_path, ThresholdSelection(0.01, (0.1, 1e-6)), RetrievalEvaluation((1,)))
    (scores,) = trainer.test(module, loader(TEST_VECTORS), verbose=False)
    assert "test/tar@threshold" not in scores
    assert "test/tar@far=1e-06" not in scores  # less than one pair
    assert [*drawn.pop()] == ["equal error"]
    result = verification(module, TEST_VECTORS, (0.1, 0.01))
    assert scores["test/tar@far=0.1"] == pytest.approx(result.at_false_accept_rate[0.1].true_accept_rate)
    assert scores["test/eer"] == pytest.approx(result.equal_error_rate)
    trainer.validate(module, loader(), verbose=False)
    saved = module.similarity_threshold["similarity"]
    capsys.readouterr()
    trainer.test(module, loader(TEST_VECTORS), verbose=False)
    assert module.similarity_threshold["similarity"] == saved  # the test does not choose
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "saved threshold" in line)
    _, far, tar = verification(module, TEST_VECTORS, (), (saved,)).at_threshold[saved]
    (points,) = drawn
    assert points["saved threshold"] == pytest.approx((saved, far, tar))
    assert points["equal error"] == pytest.approx(result.equal_error)
    assert [f"{100 * far:.3g}", f"{100 * tar:.1f}", f"{saved:.4f}"] == row.replace("│", " ").split()[2:]
    assert len(list(tmp_path.glob("runs/version_0/verification*.png"))) == 2  # nothing is overwritten


def test_the_first_dataloader_chooses(tmp_path):
    module = Plain()
    trainer = make_trainer(tmp_path, RetrievalEvaluation((1,)), ThresholdSelection(0.01))
    scores = trainer.validate(module, {"a": loader(), "b": loader(TEST_VECTORS)}, verbose=False)
    logged = {key: value for part in scores for key, value in part.items()}
    points = [verification(module, vectors).at_false_accept_rate[0.01] for vectors in (VECTORS, TEST_VECTORS)]
    assert logged["val/a/threshold"] == pytest.approx(points[0].threshold)
    assert logged["val/b/tar@far=0.01"] == pytest.approx(points[1].true_accept_rate)
    assert module.similarity_threshold["similarity"] == pytest.approx(points[0].threshold)
    trainer.test(module, {"a": loader(), "b": loader(TEST_VECTORS)}, verbose=False)
    pictures = {path.name for path in tmp_path.glob("runs/version_0/*.png")}
    assert pictures == {"verification_a.png", "verification_b.png"}
    trainer.test(module, loader(), verbose=False)
    pictures = {path.name for path in tmp_path.glob("runs/version_0/*.png")}
    assert pictures == {"verification_a.png", "verification_b.png", "verification.png"}


class Fork(Plain):
    """Writes its threshold, from each process."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_validation_end(self):
        (self.folder / f"{self.global_rank}.txt").write_text(repr(self.similarity_threshold))


def test_several_processes_choose_what_one_chooses(tmp_path):
    odd = loader(VECTORS[:59], LABELS[:59])  # the sampler repeats an image
    trainer = make_trainer(
        tmp_path, RetrievalEvaluation((1,)), ThresholdSelection(0.01), devices=2, strategy="ddp_fork"
    )
    trainer.validate(Fork(tmp_path), odd, verbose=False)
    texts = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    point = verification(Plain(), VECTORS[:59], labels=LABELS[:59]).at_false_accept_rate[0.01]
    (text,) = texts
    assert eval(text)["true_accept_rate"] == point.true_accept_rate
    assert eval(text)["similarity"] == pytest.approx(point.threshold, abs=1e-6)


def test_logs_reach_the_logger(tmp_path, capsys):
    trainer = make_trainer(
        tmp_path, RetrievalEvaluation((1,)), ThresholdSelection("eer"), logger=CSVLogger(tmp_path), max_epochs=2
    )
    trainer.fit(Plain(), loader(), loader())
    rows = list(csv.DictReader((tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()))
    assert len([row for row in rows if row.get("val/tar@eer") and row.get("val/threshold")]) == 2
    assert "Verification" not in capsys.readouterr().out  # training prints no table


def test_bad_settings_and_data_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r'criterion must be a false accept rate, such as 0.001, or "eer" or "f1", got'
    ):
        ThresholdSelection("far")
    with pytest.raises(ValueError, match=r"a false accept rate must be a number above 0 and below 1.*got 2"):
        ThresholdSelection(2)
    with pytest.raises(ValueError, match="ThresholdSelection needs RetrievalEvaluation"):
        make_trainer(tmp_path, ThresholdSelection()).validate(Plain(), loader(), verbose=False)
    callbacks = RetrievalEvaluation((1,)), ThresholdSelection(1e-4)
    with pytest.raises(ValueError, match=r"A false accept rate of 0.0001 is less than one of the 1,650 pairs of diff"):
        make_trainer(tmp_path, *callbacks).validate(Plain(), loader(), verbose=False)
    with pytest.raises(ValueError, match="All 1,770 pairs show the same class, so there is no false accept rate"):
        make_trainer(tmp_path, *callbacks).validate(Plain(), loader(labels=0 * LABELS), verbose=False)


def test_landmarks_have_no_pairs(tmp_path):
    class Landmarks(TensorDataset):
        ground_truth = ([[0], [], []], [[1], [], []])

    data = DataLoader(Landmarks(VECTORS[:20], LABELS[:20]), batch_size=20)
    with pytest.raises(ValueError, match="ThresholdSelection needs class labels"):
        make_trainer(tmp_path, RetrievalEvaluation((1,)), ThresholdSelection()).test(Plain(), data, verbose=False)
