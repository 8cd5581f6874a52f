import csv

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)

from lightning_recall import ClassBalancedBatchSampler, RetrievalEvaluation
from lightning_recall.callbacks import EvaluationCharts, EvaluationReport, RetrievedImages
from lightning_recall.callbacks.retrieval_evaluation import evaluation_results
from lightning_recall.callbacks.retrieved_images import pictures_of
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
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"devices": 1, "max_epochs": 1, **kwargs},
    )


def scores_of(embeddings, labels=LABELS, ks=(1, 2)):
    metric = RetrievalScores(("recall", "map@r"), ks)
    metric.update(embeddings, labels)
    return metric.compute()


@pytest.mark.parametrize("output", [None, "embeddings", torch.tensor(3.0), {"loss": torch.tensor(3.0)}])
def test_logs_the_metric_of_any_module(output):
    module = TheirModule(output)
    results = make_trainer(RetrievalEvaluation(ks=(1, 2))).test(module, loader(), verbose=False)[0]
    assert module.calls == 4  # returned embeddings are not computed again
    expected = scores_of(module.net(IMAGES))
    assert results == {f"test/{name}": pytest.approx(value.item()) for name, value in expected.items()}


def test_logits_that_a_step_returns_are_not_used_as_embeddings():
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
    assert torch.equal(kept.search_result.embeddings, module.net(IMAGES).detach())


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
    with pytest.raises(ValueError, match="ks must contain"):
        RetrievalEvaluation(ks=(0,))

    class GivesMaps(TheirModule):
        def forward(self, images):
            return images

    with pytest.raises(ValueError, match=r"forward of GivesMaps must give embeddings \(12, D\)"):
        make_trainer(RetrievalEvaluation()).test(GivesMaps(), loader(), verbose=False)
    with pytest.raises(ValueError, match=r"pair \(inputs, labels\), got a tensor"):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), DataLoader(IMAGES), verbose=False)
    triples = DataLoader(TensorDataset(IMAGES, LABELS, LABELS), batch_size=9)
    with pytest.raises(ValueError, match="got a list of 3"):
        make_trainer(RetrievalEvaluation(baselines=True)).test(TheirModule(), triples, verbose=False)
    with pytest.raises(ValueError, match="None of the 40 items has a same-class item"):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), loader(torch.arange(40)), verbose=False)


def test_nan_embeddings_are_refused():
    images = IMAGES.clone()
    images[7] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), loader(images=images), verbose=False)


class Shop(TensorDataset):
    """Even items are queries, odd items the gallery; the last two images are unreadable."""

    def __init__(self):
        labels = LABELS.clone()
        labels[-2:] = -100
        super().__init__(IMAGES, labels)
        self.is_query = np.arange(40) % 2 == 0
        self.is_gallery = ~self.is_query


def test_named_dataloaders_with_queries_and_gallery(capsys):
    module = TheirModule()
    loaders = {"all": loader(), "shop": DataLoader(Shop(), batch_size=12)}
    results = make_trainer(RetrievalEvaluation(ks=(1, 2))).test(module, loaders, verbose=False)
    scores = {key: value for result in results for key, value in result.items()}
    metric = RetrievalScores(("recall", "map@r"), (1, 2))
    is_query = torch.from_numpy(Shop().is_query)[:-2]
    metric.update(module.net(IMAGES)[:-2], LABELS[:-2], None, is_query, ~is_query)
    expected = {f"test/shop/{name}": pytest.approx(value.item()) for name, value in metric.compute().items()}
    expected |= {f"test/all/{name}": pytest.approx(v.item()) for name, v in scores_of(module.net(IMAGES)).items()}
    assert scores == expected
    shown = capsys.readouterr().out
    assert "model on shop" in shown
    assert "model on all" in shown


class InGroups(TensorDataset):
    groups = np.arange(40) % 3
    class_names = tuple(f"name {label}" for label in range(10))
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
    assert [row["class"] for row in rows] == [f"name {row['label']}" for row in rows]
    with (tmp_path / "runs/version_0/test_classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [int(row["label"]) for row in classes] == list(range(10))
    assert [row["class"] for row in classes] == [f"name {label}" for label in range(10)]
    assert sum(float(row["mrr"]) * int(row["queries"]) for row in classes) / len(rows) == pytest.approx(
        results["test/mrr"], rel=1e-5
    )
    trainer.fit(module, loader())
    assert evaluation.results == []  # embeddings are not kept through a training


def test_a_dataloader_without_a_batch_is_refused():
    empty = DataLoader(TensorDataset(IMAGES[:0], LABELS[:0]), batch_size=12)
    with (
        pytest.raises(ValueError, match="no batch came from dataloader small"),
        pytest.warns(UserWarning, match="length"),
    ):
        make_trainer(RetrievalEvaluation()).test(TheirModule(), {"all": loader(), "small": empty}, verbose=False)


def test_the_message_names_the_callback_that_needs_it():
    class Other(pl.Callback):
        pass

    with pytest.raises(
        ValueError, match=r"Other needs RetrievalEvaluation: add RetrievalEvaluation\(\) to the callbacks"
    ):
        evaluation_results(make_trainer(), Other())


def recall_at_1(embeddings, labels, is_query=None, is_gallery=None):
    """By the definition, in numpy: the fraction of queries whose nearest other gallery item is of their class."""
    unit = embeddings.numpy().astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    labels = np.asarray(labels)
    everything = np.ones(len(labels), bool)
    hits = []
    for query in np.flatnonzero(everything if is_query is None else is_query):
        others = np.flatnonzero(everything if is_gallery is None else is_gallery)
        others = others[others != query]
        if (labels[others] == labels[query]).any():
            nearest = others[(unit[others] @ unit[query]).argmax()]
            hits.append(labels[nearest] == labels[query])
    return np.mean(hits)


class QueriesAndGallery(TensorDataset):
    """Four images per class: one query and three in the gallery."""

    def __init__(self, size=40):
        generator = torch.Generator().manual_seed(7)
        classes = torch.randn(10, 1, 3, 3, generator=generator)
        labels = torch.arange(size) % 10
        super().__init__(classes[labels] + 1.2 * torch.randn(size, 1, 3, 3, generator=generator), labels)
        self.is_query = np.arange(size) < size // 4
        self.is_gallery = ~self.is_query
        self.paths = [f"{index}.jpg" for index in range(size)]

    def right_value(self, indices=None):
        indices = slice(None) if indices is None else indices
        images, labels = self.tensors
        roles = self.is_query[indices], self.is_gallery[indices]
        return pytest.approx(recall_at_1(images[indices].flatten(1), labels[indices], *roles))


class Pixels(pl.LightningModule):
    def forward(self, images):
        return images.flatten(1)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    test_step = validation_step


def eights(indices):
    return [indices[i : i + 8] for i in range(0, len(indices), 8)]


QUERY_DATA = QueriesAndGallery()
ORDERS = {
    "in order": lambda data: DataLoader(data, batch_size=16),
    "shuffled": lambda data: DataLoader(data, batch_size=16, shuffle=True),
    "shuffled by workers": lambda data: DataLoader(data, batch_size=16, shuffle=True, num_workers=2),
    "batch sampler": lambda data: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 16, False)),
    "list of batches": lambda data: DataLoader(data, batch_sampler=eights(torch.randperm(40).tolist())),
    "lists of indices": lambda data: DataLoader(
        data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 7, False)
    ),
    "repeated indices": lambda data: DataLoader(
        data, batch_sampler=ClassBalancedBatchSampler(data.tensors[1], 12, 3, tail="fill")
    ),
}


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
@pytest.mark.parametrize("order", ORDERS)
def test_queries_are_queries_in_whatever_order_a_loader_gives_them(order, tmp_path):
    evaluation = RetrievalEvaluation(ks=(1,), tables=True)
    results = make_trainer(evaluation, default_root_dir=tmp_path).test(
        Pixels(), ORDERS[order](QUERY_DATA), verbose=False
    )
    assert results[0]["test/recall@1"] == QUERY_DATA.right_value()
    with (tmp_path / "runs/version_0/test_queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["index"], row["path"]) for row in rows] == [(str(i), f"{i}.jpg") for i in range(10)]
    assert [int(row["label"]) for row in rows] == list(range(10))


def test_a_sampler_of_some_items_scores_these_and_the_strategy_is_restored():
    indices = [*range(3, 10), *range(12, 40, 2)]
    sampler = torch.tensor(indices)[torch.randperm(len(indices))].tolist()
    loader = DataLoader(QUERY_DATA, batch_size=4, sampler=sampler)
    trainer = make_trainer(RetrievalEvaluation(ks=(1,)))
    results = trainer.test(Pixels(), loader, verbose=False)[0]
    assert results["test/recall@1"] == QUERY_DATA.right_value(indices)
    assert "process_dataloader" not in vars(trainer.strategy)


def test_parts_and_combinations_of_data_sets_keep_their_queries():
    whole = QueriesAndGallery(80)
    for number, part in enumerate(random_split(whole, [60, 20], torch.Generator().manual_seed(3))):
        again = Subset(part, torch.randperm(len(part)).tolist())
        results = make_trainer(RetrievalEvaluation(ks=(1,))).test(
            Pixels(), DataLoader(again, batch_size=7), verbose=False
        )
        assert results[0]["test/recall@1"] == whole.right_value(part.indices), number
    halves = ConcatDataset([Subset(whole, range(40, 80)), Subset(whole, range(40))])
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(Pixels(), DataLoader(halves, batch_size=7), verbose=False)
    assert results[0]["test/recall@1"] == whole.right_value()


class Backwards(BatchSampler):
    """Batches in reverse."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


class WithLoader(Pixels):
    """Its test loader is made where Lightning can put a distributed sampler into the batch sampler."""

    def __init__(self, file=None):
        super().__init__()
        self.file = file

    def test_dataloader(self):
        return DataLoader(QUERY_DATA, batch_sampler=Backwards(SequentialSampler(QUERY_DATA), 9, False))

    def on_test_end(self):
        if self.file is not None:
            self.file.write_text(str(float(self.trainer.callback_metrics["test/recall@1"])))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_several_processes_score_as_one(processes, tmp_path):
    strategy = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
    trainer = make_trainer(RetrievalEvaluation(ks=(1,)), default_root_dir=tmp_path, **strategy)
    trainer.test(WithLoader(tmp_path / "score"), verbose=False)
    assert float((tmp_path / "score").read_text()) == QUERY_DATA.right_value()


class Batches:
    """Any iterable of batches: no data set, no sampler."""

    def __init__(self, data, size=7):
        self.batches = [data[start : start + size] for start in range(0, 40, size)]

    def __iter__(self):
        yield from self.batches


class BatchesAsItems:
    """A data set whose items are whole batches."""

    def __init__(self):
        self.batches = Batches(TensorDataset(*QUERY_DATA.tensors)).batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def drops_some(items):
    """A collate function that drops the items of a class."""
    return default_collate([item for item in items if item[1] != 4])


PLAIN_DATA = TensorDataset(*QUERY_DATA.tensors)
UNKNOWN = {
    "iterable": lambda: Batches(PLAIN_DATA),
    "items are batches": lambda: DataLoader(BatchesAsItems(), batch_size=None),
    "any order": lambda: DataLoader(PLAIN_DATA, batch_size=8, num_workers=1, in_order=False),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_batches_with_unknown_indices_are_scored(kind):
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(Pixels(), UNKNOWN[kind](), verbose=False)[0]
    images, labels = QUERY_DATA.tensors
    assert results["test/recall@1"] == pytest.approx(recall_at_1(images.flatten(1), labels))


def test_items_that_a_collate_function_drops_are_not_scored():
    loader = DataLoader(PLAIN_DATA, batch_size=3, collate_fn=drops_some)  # the first batch is whole
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(Pixels(), loader, verbose=False)[0]
    images, labels = (part[QUERY_DATA.tensors[1] != 4] for part in QUERY_DATA.tensors)
    assert results["test/recall@1"] == pytest.approx(recall_at_1(images.flatten(1), labels))


@pytest.mark.parametrize("kind", ["any order", "drops"])
def test_queries_with_unknown_indices_are_refused(kind):
    settings = {"collate_fn": drops_some} if kind == "drops" else {"num_workers": 1, "in_order": False}
    with pytest.raises(ValueError, match=r"are required, because it has is_query and is_gallery: use a map-style"):
        make_trainer(RetrievalEvaluation()).test(
            Pixels(), DataLoader(QUERY_DATA, batch_size=9, **settings), verbose=False
        )


def by_brightness(items):
    """A collate function that sorts, as those that sort texts by length."""
    return default_collate(sorted(items, key=lambda item: float(item[0].sum())))


def test_items_that_a_collate_function_sorts_are_scored_unless_indices_are_needed(tmp_path):
    images, labels = QUERY_DATA.tensors
    plain = DataLoader(PLAIN_DATA, batch_size=8, collate_fn=by_brightness)
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(Pixels(), plain, verbose=False)[0]
    assert results["test/recall@1"] == pytest.approx(recall_at_1(images.flatten(1), labels))
    with pytest.raises(ValueError, match=r"tables=True writes the data set index .* keeps their order"):
        make_trainer(RetrievalEvaluation(tables=True), default_root_dir=tmp_path).test(Pixels(), plain, verbose=False)
    loader = DataLoader(QUERY_DATA, batch_size=8, collate_fn=by_brightness)
    with pytest.raises(ValueError, match=r"because it has is_query and is_gallery: .* keeps their order"):
        make_trainer(RetrievalEvaluation()).test(Pixels(), loader, verbose=False)
    images_only = make_trainer(RetrievalEvaluation(), RetrievedImages(2, 2), default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="Cannot draw images: the data set indices of the batches are unknown"):
        images_only.test(Pixels(), plain, verbose=False)


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
def test_a_collate_function_that_keeps_the_order_leaves_the_indices_known():
    loader = DataLoader(
        QUERY_DATA, batch_size=7, shuffle=True, num_workers=1, collate_fn=lambda items: default_collate(items)
    )
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(Pixels(), loader, verbose=False)[0]
    assert results["test/recall@1"] == QUERY_DATA.right_value()


def test_a_hook_that_sorts_a_batch_shows_in_its_labels():
    class Sorts(Pixels):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            order = batch[1].argsort(descending=True)
            return [part[order] for part in batch]

    with pytest.raises(ValueError, match="because it has is_query and is_gallery"):
        make_trainer(RetrievalEvaluation()).test(Sorts(), DataLoader(QUERY_DATA, batch_size=9), verbose=False)


def test_a_wrapper_that_loses_the_queries_is_refused():
    class Wrapper:
        def __init__(self):
            self.base = QUERY_DATA

        def __len__(self):
            return len(self.base)

        def __getitem__(self, index):
            return self.base[index]

    data = Wrapper()
    with pytest.raises(ValueError, match="Wrapper does not define is_query, but its attribute base does"):
        make_trainer(RetrievalEvaluation()).test(Pixels(), DataLoader(data, batch_size=9), verbose=False)
    data.is_query, data.is_gallery = QUERY_DATA.is_query, QUERY_DATA.is_gallery
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(Pixels(), DataLoader(data, batch_size=9), verbose=False)
    assert results[0]["test/recall@1"] == QUERY_DATA.right_value()


def test_a_list_of_batches_and_single_items_raise_with_a_remedy():
    batches = Batches(PLAIN_DATA).batches
    with pytest.raises(ValueError, match=r"pass a list of batches as DataLoader\(batches, batch_size=None\)"):
        make_trainer(RetrievalEvaluation()).test(Pixels(), batches, verbose=False)
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(
        Pixels(), DataLoader(batches, batch_size=None), verbose=False
    )
    images, labels = QUERY_DATA.tensors
    assert results[0]["test/recall@1"] == pytest.approx(recall_at_1(images.flatten(1), labels))
    with pytest.raises(ValueError, match="The batch contains a single item without a batch dimension: set batch_size"):
        make_trainer(RetrievalEvaluation()).test(Pixels(), DataLoader(PLAIN_DATA, batch_size=None), verbose=False)


@pytest.mark.parametrize("kind", ["iterable", "any order"])
def test_tables_with_unknown_indices_are_refused_before_the_test(kind):
    module = TheirModule()
    with pytest.raises(
        ValueError, match=r"tables=True writes the data set index of each query, but the indices of dataloader 0"
    ):
        make_trainer(RetrievalEvaluation(tables=True)).test(module, UNKNOWN[kind](), verbose=False)
    assert module.calls == 0


class Everywhere(Pixels):
    """Gives all batches to every process."""

    def test_dataloader(self):
        return Batches(PLAIN_DATA)


class Parts(WithLoader):
    """Gives each process different batches."""

    def test_dataloader(self):
        return Batches(TensorDataset(*(part[self.global_rank :: 2] for part in QUERY_DATA.tensors)))


def test_processes_that_evaluate_the_same_batches_are_refused(tmp_path):
    two = {"devices": 2, "strategy": "ddp_fork"}
    with pytest.raises(ProcessRaisedException, match="All 2 processes evaluate the same items"):
        make_trainer(RetrievalEvaluation(), **two).test(Everywhere(), verbose=False)
    make_trainer(RetrievalEvaluation(ks=(1,)), **two).test(Parts(tmp_path / "score"), verbose=False)
    images, labels = QUERY_DATA.tensors
    assert float((tmp_path / "score").read_text()) == pytest.approx(recall_at_1(images.flatten(1), labels))


class Reloads(TheirModule):
    """Has a different number of validation images in each epoch; records the logged scores."""

    def __init__(self):
        super().__init__()
        self.sizes, self.seen = iter((40, 20, 60, 40)), []

    def val_dataloader(self):
        self.size = next(self.sizes)
        data = QueriesAndGallery(self.size)
        return {"a": DataLoader(data, batch_size=6, shuffle=True), "b": DataLoader(data, batch_size=9)}

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"embeddings": batch[0].flatten(1)}

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            scores = [self.trainer.callback_metrics[f"val/{name}/recall@1"] for name in "ab"]
            self.seen.append((self.size, *map(float, scores)))


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
def test_each_validation_of_a_training_knows_its_indices():
    module = Reloads()
    make_trainer(RetrievalEvaluation(ks=(1,)), max_epochs=4, reload_dataloaders_every_n_epochs=1).fit(module, loader())
    assert [size for size, *_ in module.seen] == [40, 20, 60, 40]
    for size, shuffled, in_order in module.seen:
        assert shuffled == in_order == QueriesAndGallery(size).right_value()


class Words(TensorDataset):
    """Items (tokens of two kinds, label), or any other form."""

    def __init__(self, form="pair"):
        super().__init__(*QUERY_DATA.tensors)
        self.form = form

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        inputs = {"ids": image, "more": (image, index)}
        forms = {"pair": (inputs, label), "mapping": {**inputs, "labels": label}, "triple": (inputs, label, index)}
        return forms[self.form]


class OfWords(pl.LightningModule):
    """Its forward takes a dict; its step returns the requested outputs."""

    def __init__(self, returned=()):
        super().__init__()
        self.returned = returned
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return inputs["ids"].flatten(1) + 0 * inputs["more"][0].flatten(1)

    def test_step(self, batch, batch_idx):
        inputs, labels = (batch, batch["labels"]) if isinstance(batch, dict) else batch[:2]
        found = {"embeddings": inputs["ids"].flatten(1), "labels": labels}
        return {name: found[name] for name in self.returned}


@pytest.mark.parametrize(
    ("form", "returned", "calls"),
    [
        ("pair", (), 5),
        ("pair", ("embeddings",), 0),
        ("mapping", ("embeddings",), 0),
        ("triple", ("embeddings", "labels"), 0),
    ],
)
def test_inputs_may_be_anything(form, returned, calls):
    module = OfWords(returned)
    loader = DataLoader(Words(form), batch_size=8)
    results = make_trainer(RetrievalEvaluation(ks=(1,))).test(module, loader, verbose=False)[0]
    images, labels = QUERY_DATA.tensors
    assert results["test/recall@1"] == pytest.approx(recall_at_1(images.flatten(1), labels))
    assert module.calls == calls


@pytest.mark.parametrize(
    ("form", "returned", "message"),
    [
        ("mapping", (), "must be a pair .* got a dict with the keys 'ids', 'more', 'labels'"),
        ("triple", ("embeddings",), "must be a pair .* got a list of 3"),
    ],
)
def test_inputs_that_forward_cannot_take_are_refused(form, returned, message):
    loader = DataLoader(Words(form), batch_size=8)
    with pytest.raises(ValueError, match=message):
        make_trainer(RetrievalEvaluation(ks=(1,))).test(OfWords(returned), loader, verbose=False)


def test_raw_pixels_are_those_of_tensors():
    with pytest.raises(
        ValueError, match=r"baselines=True scores the pixels of images: .* got a dict with the keys 'ids'"
    ):
        make_trainer(RetrievalEvaluation(baselines=True)).test(
            OfWords(), DataLoader(Words(), batch_size=8), verbose=False
        )


def test_a_wrong_number_of_embeddings_names_its_source():
    class Halves(TheirModule):
        def test_step(self, batch, batch_idx):
            return {"embeddings": self(batch[0])[::2]}

    message = r"test_step of Halves must give embeddings \(12, D\), got a tensor \(6, 5\)"
    with pytest.raises(ValueError, match=message):
        make_trainer(RetrievalEvaluation()).test(Halves(), loader(), verbose=False)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_second_module_is_compared_with_its_own_first_weights():
    evaluation = RetrievalEvaluation(ks=(1,), baselines=True)
    for _ in range(2):
        module = TheirModule()
        expected = recall_at_1(module.net(QUERY_DATA.tensors[0]).detach(), QUERY_DATA.tensors[1])
        trainer = make_trainer(evaluation, limit_val_batches=0)
        trainer.fit(module, loader())
        results = trainer.test(module, DataLoader(PLAIN_DATA, batch_size=16), verbose=False)[0]
        assert results["test/untrained/recall@1"] == pytest.approx(expected)


def write_quickly(figure, target, **_):
    """Replaces drawing, since only the names of the files matter here."""
    target.write(b"figure") if hasattr(target, "write") else target.write_text(f"figure {id(figure)}")


def test_a_second_test_and_names_with_slashes_keep_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", write_quickly)
    evaluation = RetrievalEvaluation((1,), ["recall"], tables=True)
    callbacks = evaluation, RetrievedImages(2, 2, ["best"]), EvaluationReport(2, 2)
    trainer = make_trainer(*callbacks, EvaluationCharts(), default_root_dir=tmp_path)
    data = DataLoader(PLAIN_DATA, batch_size=16)
    results = trainer.test(Pixels(), {"a/b": data, "Straße: 1": data}, verbose=False)
    images, labels = QUERY_DATA.tensors
    merged = {key: value for part in results for key, value in part.items()}
    assert set(merged) == {"test/a/b/recall@1", "test/Straße: 1/recall@1"}
    assert [*merged.values()] == pytest.approx([recall_at_1(images.flatten(1), labels)] * 2)
    first = {path.name: path.read_bytes() for path in (tmp_path / "runs/version_0").iterdir()}
    kinds = ("recall_over_k", "similarities", "embedding_map", "retrieved_images_best")
    names = {f"{kind}_{name}.png" for kind in kinds for name in ("a_b", "Straße_ 1")}
    names |= {f"test_{name}_{kind}.csv" for kind in ("queries", "classes") for name in ("a_b", "Straße_ 1")}
    assert set(first) == {*names, "report.html"}
    trainer.test(Pixels(), {"a/b": data, "Straße: 1": data}, verbose=False)
    second = {path.name: path.read_bytes() for path in (tmp_path / "runs/version_0").iterdir()}
    assert {name: second[name] for name in first} == first
    assert set(second) - set(first) == {name.replace(".", "-1.") for name in first}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_trial_run_writes_no_file(tmp_path):
    callbacks = RetrievalEvaluation((1,), tables=True), RetrievedImages(), EvaluationReport(), EvaluationCharts()
    trainer = make_trainer(*callbacks, default_root_dir=tmp_path, fast_dev_run=2)
    trainer.test(Pixels(), DataLoader(PLAIN_DATA, batch_size=16), verbose=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
def test_pictures_and_report_show_shuffled_items(tmp_path):
    loaded = []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            if watching:
                loaded.append(index)
            return super().__getitem__(index)

    watching = False
    trainer = make_trainer(RetrievalEvaluation((1,)), report := EvaluationReport(3, 4), default_root_dir=tmp_path)
    data = Watched(*QUERY_DATA.tensors)
    trainer.test(Pixels(), DataLoader(data, batch_size=16, shuffle=True), verbose=False)
    watching = True
    (result,) = evaluation_results(trainer, report)
    images = QUERY_DATA.tensors[0].flatten(1)
    assert torch.equal(result.search_result.embeddings, images[result.search_result.indices])
    pictures = pictures_of(result, {0, 5})
    assert loaded == [int(result.search_result.indices[position]) for position in (0, 5)]
    torch.testing.assert_close(torch.from_numpy(pictures[5]), to_unit(images[loaded[1]].view(3, 3)).double())


def to_unit(image):
    """Scaled to [0, 1]."""
    return (image - image.min()) / (image.max() - image.min())
