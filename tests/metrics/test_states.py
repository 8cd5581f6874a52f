import copy
import datetime
import os
import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_recall.metrics import ClusterNMI, RecallAtK, RetrievalScores, RevisitedMAP
from lightning_recall.metrics.revisited import GroundTruth

GENERATOR = torch.Generator().manual_seed(0)
LABELS = 9 * 10**15 + torch.randperm(60, generator=GENERATOR) // 6  # equal in float32
EMBEDDINGS = torch.randn(10, 5, generator=GENERATOR)[LABELS - 9 * 10**15]
EMBEDDINGS = EMBEDDINGS + 0.6 * torch.randn(60, 5, generator=GENERATOR)
PLACES = torch.arange(60)


def recall_at_1(embeddings, labels):
    """Hit rate by the whole matrix."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return (labels[nearest] == labels).double().mean().item()


VALUE = recall_at_1(EMBEDDINGS, LABELS)


def filled(*args, **kwargs):
    metric = RecallAtK(*args or (1,), **kwargs)
    for part in PLACES.split(25):
        metric.update(EMBEDDINGS[part], LABELS[part], part)
    return metric


def test_the_reference_is_not_a_corner_case():
    assert 0.6 < VALUE < 0.8
    assert filled().compute().item() == pytest.approx(VALUE)


def test_states_are_copies():
    tokens = torch.randn(60, 50, 5)
    tokens[:, 0] = EMBEDDINGS
    labels = LABELS.clone()
    metric = RecallAtK(1)
    metric.update(tokens[:, 0], labels, PLACES)
    assert metric.embeddings[0].untyped_storage().nbytes() == 60 * 5 * 4  # the other tokens are not kept
    tokens.zero_()
    labels.zero_()
    assert metric.compute().item() == pytest.approx(VALUE)
    landmarks, rows = RevisitedMAP([GroundTruth([0], [1], [])]), EMBEDDINGS.clone()
    landmarks.update(rows, LABELS, PLACES)
    rows.zero_()
    assert torch.equal(landmarks.embeddings[0], EMBEDDINGS)


@pytest.mark.parametrize(
    "change",
    [
        lambda metric: pickle.loads(pickle.dumps(metric)),
        copy.deepcopy,
        lambda metric: metric.clone(),
        lambda metric: metric.to("cpu").half().double(),
        lambda metric: metric.set_dtype(torch.float64),
        lambda metric: metric.set_dtype(torch.float16),
        lambda metric: MetricCollection([metric]).set_dtype(torch.float64)["RecallAtK"],
        lambda metric: torch.nn.ModuleList([metric]).half()[0],
    ],
)
def test_copies_and_types_leave_labels_and_indices_exact(change):
    metric = change(filled())
    metric.update(EMBEDDINGS[:9], LABELS[:9], PLACES[:9])  # duplicates count once
    assert {label.dtype for label in metric.labels + metric.indices} == {torch.int64}
    assert {flag.dtype for flag in metric.is_query} == {torch.bool}
    assert metric.compute().item() == pytest.approx(VALUE)


def test_set_dtype_changes_the_embeddings():
    assert filled().set_dtype(torch.float16).embeddings[0].dtype == torch.float16
    nmi = ClusterNMI()
    nmi.update(EMBEDDINGS, LABELS)
    expected = nmi.compute()
    assert nmi.set_dtype(torch.float64).labels[0].dtype == torch.int64
    assert nmi.compute() == expected
    landmarks = RevisitedMAP([GroundTruth([0], [1], [])])
    landmarks.update(EMBEDDINGS, LABELS, PLACES)
    assert landmarks.set_dtype(torch.float16).indices[0].dtype == torch.int64


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric RecallAtK was called before")
def test_a_state_dict_restores_the_states():
    metric, other = filled(), RecallAtK(1)
    assert list(metric.state_dict()) == []
    for each in (metric, other):
        each.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert other.compute().item() == pytest.approx(VALUE)


@pytest.mark.skipif(not hasattr(RecallAtK, "merge_state"), reason="older releases of torchmetrics merge none")
def test_states_merge():
    first, second = RecallAtK(1), RecallAtK(1)
    first.update(EMBEDDINGS[:30], LABELS[:30], PLACES[:30])
    second.update(EMBEDDINGS[20:], LABELS[20:], PLACES[20:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(VALUE)
    without = RecallAtK(1)
    without.update(EMBEDDINGS, LABELS)
    without.merge_state(second)
    with pytest.raises(ValueError, match=r"Pass indices to every update\(\) or to none"):
        without.compute()


def test_forward_returns_the_batch_value_and_accumulates():
    metric = RecallAtK(1, sync_on_compute=False)
    values = [metric(EMBEDDINGS[part], LABELS[part]).item() for part in PLACES.split(20)]
    assert values == pytest.approx([recall_at_1(EMBEDDINGS[part], LABELS[part]) for part in PLACES.split(20)], abs=0.06)
    single = RecallAtK(1)
    single.update(EMBEDDINGS[:20], LABELS[:20])
    assert values[0] == single.compute().item()
    assert metric.compute().item() == pytest.approx(VALUE)
    metric.reset()
    assert metric.embeddings == []
    single.reset()
    single.update(torch.eye(2), torch.tensor([4, 4]))
    assert single.compute() == 1


@pytest.mark.parametrize(("make", "key"), [(lambda **given: RecallAtK((1,), **given), "recall@1"), (ClusterNMI, "nmi")])
def test_metrics_that_share_updates_ignore_their_own_label(make, key):
    """torchmetrics lets metrics share states that are equal after the first batch, which has no ignored item here."""
    ignored = int(LABELS.max())
    collection = MetricCollection({"some": make(ignore_index=ignored), "all": make()})
    for part in LABELS.argsort().split(12):
        collection.update(EMBEDDINGS[part], LABELS[part])
    assert len(collection.compute_groups) == 1
    found = collection.compute()
    for name, settings in (("some", {"ignore_index": ignored}), ("all", {})):
        alone = make(**settings)
        alone.update(EMBEDDINGS[LABELS.argsort()], LABELS[LABELS.argsort()])
        assert found[f"{name}_{key}"] == alone.compute()[key]
    assert found[f"some_{key}"] != found[f"all_{key}"]


def test_items_that_one_metric_ignores_are_checked_by_another():
    collection = MetricCollection({"first": RecallAtK(1, ignore_index=-1), "second": RecallAtK(1)})
    collection.update(EMBEDDINGS, LABELS)
    collection.update(torch.full((1, 5), torch.nan), torch.tensor([-1]))  # only the first metric checks it
    assert collection["first"].compute().item() == pytest.approx(VALUE)
    with pytest.raises(ValueError, match="embeddings contain NaN"):
        collection["second"].compute()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("labels", LABELS[:1] + 1),
        ("is_query", torch.tensor([False])),
        ("is_gallery", torch.tensor([False])),
        ("groups", torch.tensor([3])),
    ],
)
def test_a_repeated_index_with_different_columns_is_refused(column, values):
    metric = RecallAtK(1)
    every = {"is_query": torch.ones(60).bool(), "is_gallery": torch.ones(60).bool(), "groups": torch.arange(60)}
    metric.update(EMBEDDINGS, LABELS, PLACES, **every)
    again = {"labels": LABELS[:1], **{name: given[:1] for name, given in every.items()}} | {column: values}
    metric.update(EMBEDDINGS[:1], indices=PLACES[:1], **again)
    with pytest.raises(ValueError, match=f"Index 0 was passed twice, with different {column}"):
        metric.compute()


def test_indices_in_a_batch_are_refused():
    metric = RecallAtK(1)
    for part in PLACES.split(20):
        metric.update(EMBEDDINGS[part], LABELS[part], torch.arange(20))
    with pytest.raises(ValueError, match="positions in the whole data set, not in a batch"):
        metric.compute()


def test_a_repeated_index_with_different_embeddings_gives_a_warning():
    metric = filled()
    metric.update(EMBEDDINGS[3:5] * 1.05, LABELS[3:5], PLACES[3:5])  # within the rounding of bf16
    assert metric.compute().item() == pytest.approx(VALUE)
    metric.update(EMBEDDINGS[7:9] * torch.tensor([[1.0], [0.8]]), LABELS[7:9], PLACES[7:9])
    with pytest.warns(UserWarning, match="Index 8 was passed twice, with different embeddings; the first one counts"):
        assert metric.compute().item() == pytest.approx(VALUE)


def test_indices_may_be_negative():
    metric = RecallAtK(1)
    metric.update(EMBEDDINGS, LABELS, -PLACES)
    metric.update(EMBEDDINGS[5:9], LABELS[5:9], -PLACES[5:9])
    assert metric.compute().item() == pytest.approx(VALUE)
    assert metric.search().indices.tolist() == list(range(-59, 1))


def first_recall(rows):
    """Hit rate among some items; items without another one of their class do not count."""
    metric = RecallAtK(1)
    metric.update(EMBEDDINGS[rows], LABELS[rows])
    return metric.compute().item()


MAKES = {
    "recall": lambda: RetrievalScores(("recall", "map"), 1),
    "scalar": lambda: RecallAtK(1),
    "ignored": lambda: RecallAtK(1, ignore_index=9 * 10**15),
    "nmi": ClusterNMI,
    "landmarks": lambda: RevisitedMAP([GroundTruth([0, 4], [1], [2])] * 2, (1,), ignore_index=-100),
}


def give(metric, rows, indexed=True):
    if isinstance(metric, RevisitedMAP):
        metric.update(EMBEDDINGS[rows], LABELS[rows].where(PLACES[rows] != 7, -100), PLACES[rows])
    elif indexed:
        metric.update(EMBEDDINGS[rows], LABELS[rows], PLACES[rows])
    else:
        metric.update(EMBEDDINGS[rows], LABELS[rows])


def compute_in_a_process(rank, world, folder):
    """Process `rank` of `world`: the last one has no items; saves the values of the metrics."""
    torch.set_num_threads(1)
    store, timeout = f"file://{folder / 'store'}", datetime.timedelta(seconds=20)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timeout)
    own = PLACES[rank :: world - 1] if rank < world - 1 else PLACES[:0]
    found = {}
    for name, make in MAKES.items():
        for how in ("never", "empty"):
            metric = make()
            for part in own.split(25) if rank < world - 1 or how == "empty" else ():
                give(metric, part)
            found[name, how] = metric.compute()
            assert sum(map(len, metric.embeddings)) == len(own)  # its own states are restored
    no_indices = RecallAtK(1)
    if len(own):
        no_indices.update(EMBEDDINGS[own], LABELS[own])
    found["no indices"] = no_indices.compute()
    mixed = RecallAtK(1)
    mixed.update(EMBEDDINGS[own].to([torch.float64, torch.float16, torch.float32][rank]), LABELS[own], PLACES[own])
    found["types"] = mixed.compute(), [part.dtype for part in mixed.embeddings]
    nothing = RecallAtK(1)
    with pytest.raises(ValueError, match="before any item was added"):
        nothing.compute()
    errors = []
    for wrong in ({"width": 3 + (rank == 0)}, {"indices": rank == 0}):
        metric, width = RecallAtK(1), wrong.get("width", 3)
        metric.update(torch.randn(4, width), PLACES[:4], PLACES[:4] if wrong.get("indices") else None)
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below
            metric.compute()
        errors.append(str(caught.value))
    ends = torch.distributed.new_group([0, world - 1])
    if rank in (0, world - 1):
        few = RecallAtK(1, process_group=ends)
        if len(own):
            few.update(EMBEDDINGS[own], LABELS[own], PLACES[own])
        found["group"] = few.compute()
    on_step = RecallAtK(1, dist_sync_on_step=True)
    found["on step"] = on_step(EMBEDDINGS[own], LABELS[own], PLACES[own]), on_step.compute()
    torch.save((found, errors), folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric .* was called before")
def test_a_process_without_items_takes_part(world, tmp_path):
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=compute_in_a_process, args=(rank, world, tmp_path)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * world
    expected = {}
    for name, make in MAKES.items():
        metric = make()
        give(metric, PLACES)
        expected[name] = metric.compute()
    assert expected["recall"]["recall@1"].item() == expected["scalar"].item() == pytest.approx(VALUE)
    for rank in range(world):
        found, errors = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name in MAKES:
            assert found[name, "never"] == found[name, "empty"] == expected[name], name
        assert found["no indices"].item() == pytest.approx(VALUE)
        assert found["types"] == (expected["scalar"], [[torch.float64, torch.float16, torch.float32][rank]])
        if rank in (0, world - 1):
            first = PLACES[:: world - 1]
            assert found["group"].item() == pytest.approx(first_recall(first))
        assert found["on step"] == (expected["scalar"], expected["scalar"])
        assert errors == [
            f"embeddings must have the same dimension on all processes, got {[4, 3, 3][:world]}.",
            "Pass indices to every update() or to none.",
        ]
