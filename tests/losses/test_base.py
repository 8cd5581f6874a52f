"""Properties of every loss: capability flags, dtypes, settings that change, norms, autocast."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from other_device import DEVICE, other_device

from lightning_recall import losses
from lightning_recall.losses.base import RetrievalLoss
from lightning_recall.losses.pairwise import pairwise_loss
from lightning_recall.losses.ranking import smooth_rank_loss
from lightning_recall.mixup import SimilarityMixup

LABELS = torch.arange(24) // 4
SINGLE_LOSSES = {
    "RecallAtKLoss": lambda: losses.RecallAtKLoss((1, 2), 1.0, 0.1),
    "SmoothAPLoss": lambda: losses.SmoothAPLoss(0.1),
    "SupAPLoss": lambda: losses.SupAPLoss(0.1, 0.3),
    "SupRecallAtKLoss": lambda: losses.SupRecallAtKLoss((1, 2), 1.0, 0.1, 0.3),
    "UniLoss": lambda: losses.UniLoss(tau=5.0),
    "CircleLoss": lambda: losses.CircleLoss(0.3, 8),
    "ContrastiveLoss": lambda: losses.ContrastiveLoss(0.8, 0.1),
    "NormalizedSoftmaxLoss": lambda: seeded(losses.NormalizedSoftmaxLoss, 6, 8),
    "ProxyAnchorLoss": lambda: seeded(losses.ProxyAnchorLoss, 6, 8),
    "CircleProxyLoss": lambda: seeded(losses.CircleProxyLoss, 6, 8, 0.3, 8),
}
ALL = SINGLE_LOSSES | {
    "MultipleLosses": lambda: losses.MultipleLosses(
        [SINGLE_LOSSES["RecallAtKLoss"](), SINGLE_LOSSES["NormalizedSoftmaxLoss"]()]
    ),
    "CrossBatchMemory": lambda: losses.CrossBatchMemory(SINGLE_LOSSES["CircleLoss"](), 30, 8),
}


def seeded(loss, *settings):
    torch.manual_seed(7)  # proxies
    return loss(*settings)


def unit(n=24, d=8, dtype=torch.float32):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1).to(dtype)


def test_every_loss_of_the_package_is_listed():
    assert set(ALL) == set(losses.__all__)


@pytest.mark.parametrize("name", ALL)
def test_capability_flags_match_the_behaviour(name):
    loss, embeddings = ALL[name](), unit()
    assert isinstance(loss, RetrievalLoss)
    pairs = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))
    for ability, option in (("shares_queries", {"queries": torch.arange(5)}), ("accepts_virtual", {"pairs": pairs})):
        if getattr(loss, ability):
            assert loss(embeddings, LABELS, **option) != ALL[name]()(embeddings, LABELS)
        else:
            with pytest.raises(ValueError, match=f"{name} does not support `{next(iter(option))}`"):
                loss(embeddings, LABELS, **option)
    alone = torch.cat([LABELS[:-1], torch.tensor([50])])  # the last item is alone in its class
    if name not in ("ProxyAnchorLoss", "CrossBatchMemory", "MultipleLosses", "UniLoss"):
        with_proxies = name in ("NormalizedSoftmaxLoss", "CircleProxyLoss")
        counts = getattr(losses, name)(7, 8) if with_proxies else ALL[name]().eval()
        whole = counts(embeddings, alone)
        without = counts(embeddings, alone, queries=torch.arange(23))
        assert loss.counts_singletons == (whole != without)


def test_a_plain_module_has_no_capability_flags():
    assert not any(
        getattr(losses.MultipleLosses([torch.nn.Module()]), ability)
        for ability in ("shares_queries", "accepts_virtual")
    )


DTYPES = ("uint8", "int8", "int16", "int32", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("name", ALL)
def test_labels_of_any_integer_type(name):
    embeddings = unit()
    for labels, dtypes in ((LABELS, DTYPES), (LABELS % 2, ("bool",))):
        expected = ALL[name]()(embeddings, labels)
        for dtype in dtypes:
            loss = ALL[name]()
            assert loss(embeddings, labels.to(getattr(torch, dtype))) == expected, dtype
            if name == "CrossBatchMemory":
                assert loss.labels[:24].tolist() == labels.tolist()


@pytest.mark.parametrize("name", [name for name in ALL if name != "MultipleLosses"])
@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (unit(4, 8).numpy(), torch.tensor([0, 0, 1, 1]), "embeddings must be a tensor, got ndarray"),
        (unit(4, 8).tolist(), torch.tensor([0, 0, 1, 1]), "embeddings must be a tensor, got list"),
        (unit(4, 8), [0, 0, 1, 1], "labels must be a tensor, got list: convert it with torch.as_tensor"),
        (unit(4, 8), LABELS[:4].numpy(), "labels must be a tensor, got ndarray"),
        (unit(4, 8), torch.tensor([0.0, 0, 1, 1]), r"labels must be integers of shape .*, got torch.float32 \(4,\)"),
        (unit(4, 8), LABELS[:3], r"one label per embedding, shape \(4,\), got shape \(3,\)"),
        (unit(4, 8) * torch.nan, LABELS[:4] % 2, "embeddings contain NaN or infinity"),
    ],
)
def test_wrong_batches_are_rejected(name, embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        ALL[name]()(embeddings, labels)


# setting: a value that a schedule may set, a value out of range, and the error message of the latter
SETTINGS = {
    "RecallAtKLoss": {
        "ks": ((4, 8), (1.5,), "ks must be one or more positive integers"),
        "k_temperature": (2.0, 0.0, "k_temperature must be a finite number above 0, got 0.0"),
        "rank_temperature": (0.3, -1.0, "rank_temperature must be a finite number above 0, got -1.0"),
        "count_query": (True, None, None),
    },
    "SmoothAPLoss": {"rank_temperature": (0.3, 0.0, "rank_temperature must be a finite number above 0, got 0.0")},
    "SupAPLoss": {
        "rank_temperature": (0.3, 0.0, "rank_temperature, delta and slope must be above 0"),
        "delta": (0.1, 0.0, "got 0.1, 0.0, 100.0"),
        "slope": (20.0, 0.0, "slope must be above 0"),
        "start": (0.2, -0.1, "start at least 0"),
        "offset": (1.2, None, None),
    },
    "UniLoss": {
        "ks": ((1, 3), (0,), "ks must be one or more positive integers"),
        "tau": (9.0, 0.0, "tau must be a finite number above 0, got 0.0"),
        "num_good": (3, 2.5, "num_good must be an integer, at least 1, got 2.5"),
        "num_bad": (3, -1, "num_bad must be at least 0, got -1"),
        "seed": (5, None, None),
    },
    "CircleLoss": {"m": (0.4, 1.0, "m must be above 0 and below 1"), "gamma": (20.0, 0.0, "gamma above 0")},
    "ContrastiveLoss": {
        "positive_margin": (0.5, 1.5, "Margins must be from -1 to 1"),
        "negative_margin": (-0.2, 0.9, "negative_margin below positive_margin, got 0.9 and 0.8"),
    },
    "NormalizedSoftmaxLoss": {"temperature": (0.2, 0.0, "temperature must be a finite number above 0, got 0.0")},
    "ProxyAnchorLoss": {
        "delta": (0.3, None, None),
        "alpha": (5.0, 0.0, "alpha must be a finite number above 0, got 0.0"),
    },
    "CircleProxyLoss": {"m": (0.4, 0.0, "m must be above 0"), "gamma": (20.0, -1.0, "gamma above 0, got 0.3 and -1")},
    "MultipleLosses": {"weights": ([0.5, 2.0], [1.0], "a non-negative weight for each, got 2 losses and weights")},
    "CrossBatchMemory": {"start_after": (3, -1, "start_after must be at least 0, got -1")},
}
SETTINGS["SupRecallAtKLoss"] = SETTINGS["SupAPLoss"] | {
    "ks": SETTINGS["RecallAtKLoss"]["ks"],
    "k_temperature": SETTINGS["RecallAtKLoss"]["k_temperature"],
}
KEPT = {"losses", "loss", "num_classes", "embedding_dim", "size"}  # parts and sizes, not settings


@pytest.mark.parametrize("name", ALL)
def test_a_changed_setting_takes_effect_in_the_next_batch(name):
    embeddings = unit()
    assert set(inspect.signature(type(ALL[name]())).parameters) - KEPT == set(SETTINGS[name])
    for setting, (value, wrong, message) in SETTINGS[name].items():
        changed = ALL[name]()
        given = {key: getattr(changed, key) for key in SETTINGS[name]} | {setting: value}
        kept = {"num_classes": 6, "embedding_dim": 8, "losses": None, "loss": None, "size": 30}
        if name == "MultipleLosses":
            kept["losses"] = list(ALL[name]().losses)
        if name == "CrossBatchMemory":
            kept["loss"] = ALL[name]().loss
        parameters = inspect.signature(type(changed)).parameters
        torch.manual_seed(7)
        fresh = type(changed)(**given, **{key: part for key, part in kept.items() if key in parameters})
        unchanged = ALL[name]()
        for loss in (changed, fresh, unchanged):
            loss(embeddings, LABELS)
        setattr(changed, setting, value)
        after = changed(embeddings, LABELS)
        assert after == fresh(embeddings, LABELS), setting
        assert after != unchanged(embeddings, LABELS), setting
        if message is not None:
            setattr(changed, setting, wrong)
            with pytest.raises(ValueError, match=message):
                changed(embeddings, LABELS)


def test_a_scheduled_temperature_takes_effect_in_sup_ap():
    """One query with one positive and one negative; the rank at rank_temperature 0.5 is computed by hand."""
    loss = losses.SupAPLoss(0.01)
    loss.rank_temperature = 0.5
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], dtype=torch.float64)
    value = loss(embeddings, torch.tensor([0, 0, 1]), queries=torch.tensor([0]))  # s: positive 0.8, negative 0.6
    rank = 1 + 1 / (1 + torch.tensor(0.4, dtype=torch.float64).exp())  # t = -0.2, tau = 0.5
    torch.testing.assert_close(value, 1 - 1 / rank)


@pytest.mark.parametrize("name", SINGLE_LOSSES)
def test_unnormalised_embeddings_cause_one_warning(name):
    embeddings, loss = unit(), SINGLE_LOSSES[name]()
    message = rf"{name} expects unit-norm embeddings, but one has norm 3: .* F.normalize\(embeddings, dim=1\)"
    loss(embeddings, LABELS)
    with pytest.warns(UserWarning, match=message) as warned:
        loss(torch.cat([embeddings[:-1], 3 * embeddings[-1:]]), LABELS)
    assert warned[0].filename == __file__
    loss(3 * embeddings, LABELS)  # warnings are errors
    SINGLE_LOSSES[name]()(0.3 * embeddings, LABELS)
    for dtype in (torch.bfloat16, torch.float16):
        SINGLE_LOSSES[name]()(embeddings.to(dtype), LABELS)
    SINGLE_LOSSES[name]()(F.normalize(torch.randn(24, 8, dtype=torch.bfloat16), dim=1), LABELS)
    mixed, labels = SimilarityMixup()(embeddings, LABELS)
    SINGLE_LOSSES[name]()(mixed, labels)


def test_combined_losses_leave_the_warning_to_their_losses():
    peers = pytest.importorskip("pytorch_metric_learning.losses")  # a test tool
    theirs = peers.ContrastiveLoss()  # it normalises
    losses.MultipleLosses([theirs])(3 * unit(), LABELS)
    with pytest.warns(UserWarning, match="SmoothAPLoss expects unit-norm") as warned:
        losses.CrossBatchMemory(losses.MultipleLosses([losses.SmoothAPLoss()]), 30, 8)(3 * unit(), LABELS)
    assert len(warned) == 1


def test_later_batches_do_not_synchronise_with_the_device():
    loss, embeddings, waits = losses.SmoothAPLoss(), unit(), []
    for batch in range(22):
        with other_device() as device, warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(embeddings.to(DEVICE) * (1 if batch < 20 else 3), LABELS.to(DEVICE))
        waits.append(sum(device.waits.values()))
    assert waits[0] == waits[19] == waits[20] + 1 == waits[21] + 1


class Products(RetrievalLoss):
    """A user loss in plain autograd."""

    shares_queries = True
    accepts_virtual = True

    def compute(self, embeddings, labels, queries=None, pairs=None):
        self.diagnostics = {"queries": -1 if queries is None else len(queries), "pairs": pairs is not None}
        assert labels.dtype == torch.int64
        return (embeddings @ embeddings.T).square().mean()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_user_loss_receives_checked_batches(value):
    """The base class checks shapes, labels and finiteness, and converts, before `compute`."""
    seen = []

    class Own(RetrievalLoss):
        def compute(self, embeddings, labels):
            seen.append((embeddings.dtype, labels.dtype, torch.is_autocast_enabled("cpu")))
            return embeddings.sum()

    with torch.autocast("cpu", torch.bfloat16):
        Own()(unit(dtype=torch.float16), LABELS.to(torch.uint8))
        Own()(unit(dtype=torch.float64), LABELS)
    assert seen == [(torch.float32, torch.int64, False), (torch.float64, torch.int64, False)]
    with pytest.raises(ValueError, match="embeddings contain NaN or infinity"):
        Own()(torch.full((24, 8), value), LABELS)
    with pytest.raises(ValueError, match="labels must be integers"):
        Own()(unit(), LABELS.float())
    assert len(seen) == 2


def test_a_repeated_cut_off_has_twice_the_weight():
    embeddings = unit()
    once, twice, other = (losses.RecallAtKLoss(ks, 1.0, 0.1)(embeddings, LABELS) for ks in ((1,), (1, 1, 2), (2,)))
    torch.testing.assert_close(twice, (2 * once + other) / 3)


def rank_function(embeddings, labels, pairs=None):
    def objective(ranks, valid, _):
        return (ranks * valid).sum(1)

    return smooth_rank_loss(embeddings, labels, objective, 0.1, pairs=pairs).loss


def pairwise_function(embeddings, labels, pairs=None):
    def values(similarities, _, negative):
        return (similarities * negative).square().sum(1) + similarities.mean(1)

    return pairwise_loss(embeddings, labels, values, pairs=pairs).loss


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "SiMix"])
@pytest.mark.parametrize("name", [*ALL, "user loss", "rank function", "pairwise function"])
def test_autocast_changes_neither_value_nor_gradient(name, mixed):
    """Forward and backward both run under autocast in a training step of mixed precision."""
    make = {
        "user loss": Products,
        "rank function": lambda: rank_function,
        "pairwise function": lambda: pairwise_function,
        **ALL,
    }[name]
    if mixed and not getattr(make(), "accepts_virtual", "function" in name):
        pytest.skip("does not support pairs")
    embeddings = unit().requires_grad_()
    pairs = {"pairs": SimilarityMixup().draw(LABELS)} if mixed else {}

    def step(autocast):
        loss = make()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(embeddings, LABELS, **pairs)
            leaves = [embeddings, *(loss.parameters() if isinstance(loss, RetrievalLoss) else ())]
            return [value, *torch.autograd.grad(value, leaves)]

    plain, cast = step(False), step(True)
    if name == "user loss":  # autograd computes its backward under autocast
        plain, cast = plain[:1], cast[:1]
    for one, other in zip(plain, cast, strict=True):
        assert one.abs().max() > 1e-4
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*torch.compile:UserWarning")
def test_capability_flags_survive_torch_compile():
    loss = torch.compile(Products(), backend="eager")
    total = losses.MultipleLosses([loss, SINGLE_LOSSES["NormalizedSoftmaxLoss"]()])
    pairs = SimilarityMixup().draw(LABELS)
    for wrapped in (total, losses.CrossBatchMemory(loss, 30, 8)):
        assert wrapped.shares_queries
        assert wrapped.accepts_virtual
        wrapped(unit(), LABELS, torch.arange(5), pairs)
        assert wrapped.diagnostics["queries"] == 5
        assert wrapped.diagnostics["pairs"]


class MeanSimilarity(RetrievalLoss):
    def compute(self, embeddings, labels):
        return -(embeddings @ embeddings.T)[labels[:, None] == labels].mean()


@pytest.mark.filterwarnings("ignore:.*torch.compile:UserWarning")
def test_a_loss_of_your_own_compiles_into_one_graph():
    compiled = torch.compile(MeanSimilarity(), backend="eager", fullgraph=True)
    embeddings = unit()
    torch.testing.assert_close(compiled(embeddings, LABELS), MeanSimilarity()(embeddings, LABELS))


@pytest.mark.filterwarnings("ignore:.*torch.compile:UserWarning")
@pytest.mark.parametrize("name", ["RecallAtKLoss", "ContrastiveLoss", "NormalizedSoftmaxLoss"])
def test_a_compiled_loss_still_rejects_nan(name):
    broken = unit().clone()
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        torch.compile(SINGLE_LOSSES[name](), backend="eager")(broken, LABELS)


class OneValueEach(RetrievalLoss):
    def compute(self, embeddings, labels):
        return embeddings.sum(1) * labels


def test_a_loss_that_is_not_a_scalar_is_rejected():
    with pytest.raises(ValueError, match=r"OneValueEach.compute must return a scalar, got shape \(24,\)"):
        OneValueEach()(unit(), LABELS)
