import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule, Trainer
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection, MetricTracker, wrappers
from torchmetrics.wrappers import BootStrapper, MinMaxMetric, MultitaskWrapper

from lightning_recall import RecallAtK
from lightning_recall.metrics import RetrievalScores
from lightning_recall.search import ranks as module


def recall_by_sklearn(embeddings, labels, k):
    """Hit rate by an independent exact search."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    _, found = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(unit).kneighbors(unit)
    hits, queries = 0, 0
    for q in range(len(labels)):
        if (labels == labels[q]).sum() > 1:
            neighbors = [z for z in found[q] if z != q][:k]
            hits += (labels[neighbors] == labels[q]).any()
            queries += 1
    return hits / queries


@pytest.mark.parametrize("rows", [1, 20, 4096])
def test_equals_an_independent_search(rows, monkeypatch):
    monkeypatch.setattr(module, "QUERIES_PER_BLOCK", rows)
    monkeypatch.setattr(module, "ITEMS_PER_BLOCK", rows)
    embeddings, labels = torch.randn(150, 8, dtype=torch.float64), torch.randint(0, 40, (150,))
    assert (labels.bincount() == 1).any()  # some classes have one item
    metric = RecallAtK(ks=(1, 2, 4, 8))
    for rows in torch.arange(150).split(37):
        metric.update(embeddings[rows], labels[rows])
    for k in (1, 2, 4, 8):
        expected = recall_by_sklearn(embeddings.numpy(), labels.numpy(), k)
        assert metric.compute()[f"recall@{k}"].item() == pytest.approx(expected, abs=1e-7)


def test_a_collapsed_network_scores_zero():
    metric = RecallAtK(ks=(1, 2))
    metric.update(torch.ones(9, 4), torch.arange(9) // 3)
    assert metric.compute() == {"recall@1": 0.0, "recall@2": 0.0}


def test_a_duplicate_of_the_query_counts_by_its_label():
    metric = RecallAtK(ks=(1,))
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 0, 1, 1]))
    assert metric.compute()["recall@1"] == 1  # the duplicate is not mistaken for the query itself


def shapes_of_products(monkeypatch, **given):
    """Shape of each product in a search of 500 items."""
    shapes, product = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: shapes.append((len(a), b.shape[1])) or product(a, b, out=out))
    metric = RecallAtK()
    metric.update(torch.randn(500, 4), torch.arange(500) // 5, **given)
    metric.compute()
    return shapes


def test_half_of_the_similarity_matrix_is_computed_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "SQUARE_BLOCK", 100)
    assert shapes_of_products(monkeypatch) == [(100, 100)] * 15


def test_similarities_of_queries_with_a_gallery_are_computed_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "QUERIES_PER_BLOCK", 100)
    monkeypatch.setattr(module, "ITEMS_PER_BLOCK", 200)
    is_query = torch.arange(500) % 5 == 0
    assert shapes_of_products(monkeypatch, is_query=is_query, is_gallery=~is_query) == [(100, 200)] * 2


def test_large_labels_and_half_precision():
    metric = RecallAtK(ks=(1,))
    labels = 2**40 + torch.tensor([0, 1, 2, 3, 4, 4])  # equal in float32
    metric.update(torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1], [1, 1]]).half(), labels)
    assert metric.compute()["recall@1"] == 1
    metric.reset()
    metric.update(torch.eye(4).repeat_interleave(2, 0).half(), 2**40 + torch.arange(8))
    with pytest.raises(ValueError, match="None of the 8 items"):
        metric.compute()


def test_an_item_seen_twice_counts_once():
    embeddings, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 3])
    once, twice = RecallAtK(), RecallAtK()
    once.update(embeddings, labels)
    for rows in (torch.tensor([0, 2, 4]), torch.tensor([1, 3, 0])):  # five items on two processes
        twice.update(embeddings[rows], labels[rows], indices=rows)
    assert twice.compute() == once.compute()
    with pytest.raises(ValueError, match="Pass indices to every update"):
        twice.update(embeddings, labels)
    with pytest.raises(ValueError, match="Pass indices to every update"):
        once.update(embeddings, labels, indices=torch.arange(5))


def test_in_a_collection_and_reset():
    collection = MetricCollection({"cosine": RecallAtK(ks=(1,)), "dot": RecallAtK(ks=(1,), normalize=False)}, prefix="")
    long = torch.tensor([[1.0, 0.0], [0.9, 0.1], [5.0, 4.9], [4.0, 5.0]])
    collection.update(long, torch.tensor([0, 0, 1, 1]))
    scores = collection.compute()
    assert scores["cosine_recall@1"] == 1
    assert scores["dot_recall@1"] == 0.5  # the long vectors of class 1 are nearest to all queries
    collection.reset()
    collection["cosine"].update(torch.eye(2), torch.tensor([3, 3]))
    assert collection["cosine"].compute() == {"recall@1": 1.0}


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), r"got \(3, 2\) and \(2,\)"),
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), r"shape \(B, D\)"),
        (torch.ones(3, 2), torch.zeros(3), "labels must be integers"),
        (torch.full((3, 2), float("nan")), torch.zeros(3, dtype=torch.int64), "NaN"),
    ],
)
def test_wrong_batches_are_refused(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        RecallAtK().update(embeddings, labels)


def test_a_metric_without_items_or_queries_is_refused():
    with pytest.raises(ValueError, match="before any item was added"), pytest.warns(UserWarning, match="before"):
        RecallAtK().compute()
    metric = RecallAtK()
    metric.update(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="None of the 3 items has a same-class item"):
        metric.compute()


@pytest.mark.parametrize("rows", [1, 4096])
@pytest.mark.parametrize("overlap", [False, True])
def test_queries_search_the_gallery_only(rows, overlap, monkeypatch):
    monkeypatch.setattr(module, "QUERIES_PER_BLOCK", rows)
    monkeypatch.setattr(module, "ITEMS_PER_BLOCK", rows)
    embeddings, labels = torch.randn(90, 6, dtype=torch.float64), torch.randint(0, 12, (90,))
    is_query = torch.rand(90) < 0.4
    is_gallery = ~is_query | (overlap & (torch.rand(90) < 0.5))
    metric = RecallAtK(ks=(1, 3), ignore_index=11)
    for rows in torch.randperm(90).split(25):
        metric.update(embeddings[rows], labels[rows], rows, is_query[rows], is_gallery[rows])
    metric.update(embeddings[:5], labels[:5], torch.arange(5), is_query[:5], is_gallery[:5])  # duplicates count once
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).numpy()
    hits = []
    for q in np.flatnonzero(is_query & (labels != 11)):
        gallery = [z for z in np.flatnonzero(is_gallery & (labels != 11)) if z != q]
        found = sorted(gallery, key=lambda z: -unit[z] @ unit[q])
        right = [bool(labels[z] == labels[q]) for z in found]
        if any(right):
            hits.append([any(right[:k]) for k in (1, 3)])
    expected = np.mean(hits, 0)
    assert 0 < expected[0] < expected[1] < 1
    assert [metric.compute()[f"recall@{k}"].item() for k in (1, 3)] == pytest.approx(expected)


def test_ignored_items_may_have_nan_embeddings():
    metric = RecallAtK((1,), ignore_index=-100)
    metric.update(torch.tensor([[1.0, 0], [1, 0.1], [torch.nan, 0], [0, 1]]), torch.tensor([1, 1, -100, 2]))
    assert metric.compute()["recall@1"] == 1


def test_a_gallery_without_the_queries_classes_is_refused():
    metric = RecallAtK((1,))
    is_query = torch.tensor([True, False, False])
    metric.update(torch.randn(3, 2), torch.tensor([1, 2, 2]), None, is_query, ~is_query)
    with pytest.raises(ValueError, match="None of the 3 items has a same-class item in the gallery"):
        metric.compute()


def noisy_classes(noise, seed=0):
    """60 items of 10 classes, and the exact recall at 1 and 5."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(60, generator=generator) // 6
    embeddings = torch.randn(10, 5, generator=generator)[labels] + noise * torch.randn(60, 5, generator=generator)
    return embeddings, labels, [recall_by_sklearn(embeddings.numpy(), labels.numpy(), k) for k in (1, 5)]


def test_one_cut_off_gives_a_scalar_and_a_sequence_a_dict():
    embeddings, labels, (at_1, at_5) = noisy_classes(0.6)
    for ks, expected in ((1, at_1), (np.int64(5), at_5), ((1,), {"recall@1": at_1})):
        metric = RecallAtK(ks)
        metric.update(embeddings, labels)
        assert metric.compute() == pytest.approx(expected, abs=1e-6)
        assert metric(embeddings, labels) == pytest.approx(expected, abs=1e-6)  # forward
    assert RecallAtK(1).scores == ("recall",)


def test_one_score_gives_a_scalar_and_a_sequence_a_dict():
    embeddings, labels, (at_1, _) = noisy_classes(0.6)
    everything = RetrievalScores(("recall", "map"), 1)
    everything.update(embeddings, labels)
    average = everything.compute()["map"].item()
    assert 0 < average < at_1
    asked = [("map", (1, 2)), ("recall", 1), ("recall", (1,)), (("map",), 1), ("precision", 1)]
    answers = [average, at_1, {"recall@1": at_1}, {"map": average}, at_1]
    for (scores, ks), expected in zip(asked, answers, strict=True):
        metric = RetrievalScores(scores, ks)
        metric.update(embeddings, labels)
        assert metric.compute() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"scores must be distinct names from .*, got \('map', 'map'\)"):
        RetrievalScores(("map", "map"))


def test_collections_trackers_and_wrappers_of_torchmetrics():
    data = [noisy_classes(noise, seed) for seed, noise in enumerate((0.9, 0.2, 0.6))]
    tracker = MetricTracker(MetricCollection({"r1": RecallAtK(1), "r5": RecallAtK(5)}, prefix="val/"), [True, True])
    single = MetricTracker(RecallAtK(1))
    extremes = MinMaxMetric(RecallAtK(1))
    for embeddings, labels, _ in data:
        for metric in (tracker, single):
            metric.increment()
            metric.update(embeddings, labels)
        extremes(embeddings, labels)
    values = [at_1 for *_, (at_1, _) in data]
    assert max(values) == values[1] > values[2] > values[0]
    assert single.compute_all().tolist() == pytest.approx(values)
    assert single.best_metric(return_step=True) == (pytest.approx(values[1]), 1)
    best, steps = tracker.best_metric(return_step=True)
    assert best == pytest.approx({"val/r1": values[1], "val/r5": max(at_5 for *_, (_, at_5) in data)})
    assert steps["val/r1"] == 1
    bounds = extremes.compute()
    assert (bounds["max"].item(), bounds["min"].item()) == pytest.approx((max(values), min(values)), abs=0.2)
    embeddings, labels, (at_1, at_5) = data[2]
    both = (RecallAtK(1) + RecallAtK(5)) / 2
    if not hasattr(wrappers, "LambdaInputTransformer"):
        pytest.skip("older releases of torchmetrics have none")
    mapped = wrappers.LambdaInputTransformer(RecallAtK(1), transform_pred=lambda rows: -2 * rows)
    both.update(embeddings, labels)
    mapped.update(embeddings, labels)
    tasks = MultitaskWrapper({"item": RecallAtK(1)})
    tasks.update({"item": embeddings}, {"item": labels})
    assert both.compute().item() == pytest.approx((at_1 + at_5) / 2)
    assert mapped.compute().item() == tasks.compute()["item"].item() == pytest.approx(at_1)


def test_bootstraps_need_indices():
    """BootStrapper draws with replacement: without indices an item retrieves its own duplicate."""
    embeddings, labels, (at_1, _) = noisy_classes(0.6)
    metric = BootStrapper(RecallAtK(1), num_bootstraps=20)
    metric.update(embeddings, labels, indices=torch.arange(60))
    found = metric.compute()
    assert found["mean"].item() == pytest.approx(at_1, abs=0.08)
    assert 0.01 < found["std"] < 0.2
    without = BootStrapper(RecallAtK(1), num_bootstraps=20)
    without.update(embeddings, labels)
    assert without.compute()["mean"] > at_1 + 0.1


def test_values_are_plotted():
    metric, several = RecallAtK(1), RecallAtK((1, 5))
    for each in (metric, several):
        each.update(*noisy_classes(0.6)[:2])
        figure, axes = each.plot()
        assert isinstance(figure, Figure)
        assert axes.get_ylabel() == "RecallAtK"
    figure, axes = metric.plot([metric.compute()] * 3)
    assert len(axes.lines[0].get_xdata()) == 3


class Scored(LightningModule):
    """Logs recall in both ways of the docstring; each epoch has different data."""

    def __init__(self, folder):
        super().__init__()
        self.single, self.several = RecallAtK(1), RecallAtK((1, 5))
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.folder, self.seen = folder, []

    def val_dataloader(self):
        return DataLoader(TensorDataset(*noisy_classes(0.6)[:2], noisy_classes(0.3, 1)[0], torch.arange(60)), 7)

    def train_dataloader(self):
        return DataLoader(torch.zeros(2, 1), 1)

    def training_step(self, batch, batch_idx):
        return self.unused * 0

    def configure_optimizers(self):
        return torch.optim.SGD([self.unused], 0.1)

    def validation_step(self, batch, batch_idx):
        first, labels, _, indices = batch
        embeddings = first if self.current_epoch == 0 else first.roll(1, 1) * torch.tensor([1.0, 1, 1, 0, 0])
        self.single.update(embeddings, labels, indices)
        self.several.update(embeddings, labels, indices)
        self.log("val/r1", self.single)

    def on_validation_epoch_end(self):
        self.log_dict({f"val/{name}": value for name, value in self.several.compute().items()}, sync_dist=True)
        self.several.reset()

    def on_train_epoch_end(self):
        self.seen.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})
        torch.save(self.seen, self.folder / f"{self.global_rank}.pt")


@pytest.mark.parametrize("devices", [1, 2])
def test_a_module_logs_it_and_resets_it_each_epoch(devices, tmp_path):
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp_fork",
        max_epochs=2,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **settings,
    ).fit(Scored(tmp_path))
    embeddings, labels, (at_1, at_5) = noisy_classes(0.6)
    changed = embeddings.roll(1, 1) * torch.tensor([1.0, 1, 1, 0, 0])
    others = [recall_by_sklearn(changed.numpy(), labels.numpy(), k) for k in (1, 5)]
    assert others[0] < at_1 - 0.1
    for rank in range(devices):
        seen = torch.load(tmp_path / f"{rank}.pt")
        for values, expected in zip(seen, ((at_1, at_5), others), strict=True):
            assert (values["val/r1"], values["val/recall@5"]) == pytest.approx(expected)
            assert values["val/recall@1"] == values["val/r1"]
