import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import EvaluationCharts, RetrievalEvaluation
from lightning_recall.callbacks.evaluation_charts import charts_of, draw_map, draw_recall, draw_similarities
from lightning_recall.metrics import RecallAtK, RevisitedMAP
from lightning_recall.metrics.revisited import GroundTruth


class Flatten(pl.LightningModule):
    def forward(self, images):
        return images.flatten(1)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass


def searched(size=60, dim=4, normalize=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    metric = RecallAtK((1,), normalize=normalize)
    metric.update(torch.randn(size, dim, generator=generator), torch.arange(size) // 4)
    return metric.search()


def test_writes_a_picture_of_each_for_each_test_set(tmp_path, capsys):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[EvaluationCharts(), RetrievalEvaluation()],
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.rand(24, 1, 3, 3), torch.arange(24) // 3), batch_size=10)
    trainer.test(Flatten(), {"a": loader, "b": loader}, verbose=False)
    names = {f"{name}_{part}.png" for name in ("similarities", "recall_over_k", "embedding_map") for part in "ab"}
    assert {path.name for path in tmp_path.glob("runs/version_0/*.png")} == names
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def test_the_curve_is_recall_at_every_k():
    found = searched()
    (curve, *_) = draw_recall(found).axes[0].lines
    ks, values = curve.get_data()
    assert ks.tolist() == list(range(1, 61))
    for k, value in zip(ks, values, strict=True):
        assert value == pytest.approx(100 * (found.first_ranks <= k).double().mean())


@pytest.mark.parametrize("normalize", [True, False])
def test_the_histograms_hold_every_pair(normalize):
    found = searched(normalize=normalize)
    axes = draw_similarities(found, 0).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["same class: 180", "other classes: 3,360"]
    rows = torch.nn.functional.normalize(found.embeddings, dim=1) if normalize else found.embeddings
    similarities, same = rows @ rows.T, found.labels[:, None] == found.labels
    counted, edges = np.histogram(similarities[~same].numpy(), axes.patches[2].get_data().edges)
    drawn = axes.patches[2].get_data().values * np.diff(edges) * 3360
    np.testing.assert_allclose(drawn, counted, atol=1.5)  # at an edge fp32 may fall to either side


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_map_has_the_first_principal_components(dim):
    found = searched(size=40, dim=dim, normalize=False)
    axes = draw_map(found, 0).axes[0]
    points = np.concatenate([part.get_offsets() for part in axes.collections])
    assert points.shape == (40, 2)
    centred = found.embeddings.double().numpy() - found.embeddings.double().numpy().mean(0)
    variances = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1][:2]
    np.testing.assert_allclose((points**2).sum(0), np.pad(variances, (0, 2 - len(variances))), atol=1e-5)
    looks = {(part.get_facecolor()[0].tobytes(), part.get_paths()[0].vertices.tobytes()) for part in axes.collections}
    assert len(looks) == 10  # each class looks different
    assert len(axes.texts) == 10


def test_without_labels_there_is_no_map():
    metric = RevisitedMAP([GroundTruth([0, 1], [2], [3])])
    metric.update(torch.randn(9, 4), torch.arange(9), torch.arange(9))
    charts = charts_of(metric.search(), 0)
    assert [chart.name for chart in charts] == ["recall_over_k", "similarities"]
    for chart in charts:
        chart.draw()


def test_it_needs_an_evaluation():
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[EvaluationCharts()]
    )
    with pytest.raises(ValueError, match="EvaluationCharts shows what RetrievalEvaluation finds"):
        trainer.test(Flatten(), DataLoader(TensorDataset(torch.rand(8, 4), torch.arange(8) // 2)), verbose=False)
