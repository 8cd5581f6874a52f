import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import f1_score, roc_curve

from lightning_recall.benchmarks.measure import peak_tensor_bytes
from lightning_recall.metrics import VerificationScores, verification, verify
from lightning_recall.search import EmbeddingBlocks, LabelledEmbeddings
from lightning_recall.search.operating_points import largest_count
from lightning_recall.search.pair_similarities import PairBlock, PairSimilarities

RATES = (0.3, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
THRESHOLDS = (0.3, 0.123, -2.0, 2.0)


def clustered(size, dim, num_classes, noise, copies=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (size,), generator=generator)
    embeddings = torch.randn(num_classes, dim, generator=generator)[labels]
    embeddings = embeddings + noise * torch.randn(size, dim, generator=generator)
    if copies:  # the same image with two labels, and ties
        embeddings[size // 2 :] = embeddings[: size - size // 2]
    return embeddings, labels


def few_values(seed):
    """Embeddings with at most 27 different values, so that most pairs are tied."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (90, 3), generator=generator).float(), torch.randint(0, 8, (90,), generator=generator)


def all_pairs(embeddings, labels):
    """Similarities in float64, rounded to float32, and whether a pair is genuine."""
    unit = F.normalize(embeddings.double(), dim=1)
    similarities = (unit @ unit.T).float().numpy()
    i, j = np.triu_indices(len(labels), 1)
    return similarities[i, j].astype(np.float64), (labels[i] == labels[j]).numpy()


def check_against_scikit_learn(result, similarities, is_genuine):
    far, tar, thresholds = roc_curve(is_genuine, similarities, drop_intermediate=False)
    for rate, point in result.at_false_accept_rate.items():
        if rate * (~is_genuine).sum() < 1:
            assert all(math.isnan(value) for value in point)
            continue
        last = np.flatnonzero(far <= rate)[-1]
        assert point[1:] == (far[last], tar[last])
        assert (thresholds[last + 1] if last + 1 < len(far) else -np.inf) < point.threshold <= thresholds[last]
    for threshold, point in result.at_threshold.items():
        accepted = similarities >= threshold
        assert point == (threshold, accepted[~is_genuine].mean(), accepted[is_genuine].mean())
    crossing = brentq(lambda rate: 1 - rate - interp1d(far, tar)(rate), 0, 1)
    assert result.equal_error_rate == pytest.approx(crossing, abs=1e-9)
    assert result.equal_error.threshold == thresholds[np.flatnonzero(far >= 1 - tar)[0]]
    scores = 2 * tar * is_genuine.sum() / (tar * is_genuine.sum() + far * (~is_genuine).sum() + is_genuine.sum())
    assert result.f1 == pytest.approx(scores.max(), abs=1e-12)
    accepted = similarities >= result.best_f1.threshold
    assert result.f1 == pytest.approx(f1_score(is_genuine, accepted), abs=1e-12)
    return far, tar, thresholds


DATA = {
    "overlapping": lambda: clustered(300, 8, 40, 1.0),
    "copies": lambda: clustered(300, 8, 40, 1.0, copies=True),
    "large classes": lambda: clustered(400, 3, 5, 2.0),
    "separated": lambda: clustered(100, 8, 20, 0.01),
    "ties": lambda: few_values(0),
    "more ties": lambda: few_values(1),
}


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("data", list(DATA))
def test_equals_scikit_learns_roc_curve(data, small, monkeypatch):
    monkeypatch.setattr(verification, "EXACT_CURVE_PAIRS", 2**20 if small else 0)
    embeddings, labels = DATA[data]()
    metric = VerificationScores(RATES)
    metric.update(embeddings, labels)
    result = metric.verify(THRESHOLDS, with_f1=True)
    similarities, is_genuine = all_pairs(embeddings, labels)
    assert (result.num_genuine, result.num_impostor) == (is_genuine.sum(), (~is_genuine).sum())
    far, tar, thresholds = check_against_scikit_learn(result, similarities, is_genuine)
    if small:
        for found, expected in zip(result.roc, (far, tar, thresholds), strict=True):
            assert np.array_equal(found, expected)
    else:
        edges = np.linspace(0, len(result.roc.thresholds) - 1, 40).astype(int)
        for rate, true_rate, threshold in zip(*(column[edges] for column in result.roc), strict=True):
            above, below = similarities >= threshold + 1e-6, similarities >= threshold - 1e-6
            assert above[~is_genuine].mean() <= rate <= below[~is_genuine].mean()
            assert above[is_genuine].mean() <= true_rate <= below[is_genuine].mean()
        assert result.roc.true_accept_rates[-1] == result.roc.false_accept_rates[-1] == 1


def test_rounding_in_float32_does_not_matter(monkeypatch):
    """Noise of the size that the search tolerates moves pairs into other bins, but changes no result."""
    monkeypatch.setattr(verification, "EXACT_CURVE_PAIRS", 0)
    embeddings, labels = clustered(700, 512, 80, 3.0)
    metric = VerificationScores(RATES)
    metric.update(embeddings, labels)
    exact = metric.verify(THRESHOLDS, with_f1=True)
    tolerance = (2 * 512**0.5 + 4) * 2.0**-24
    block_of = PairSimilarities._block

    def noisy(self, similarities, *position) -> PairBlock:
        noise = torch.rand(similarities.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        return block_of(self, similarities.add_(0.95 * tolerance * noise.sign()), *position)

    monkeypatch.setattr(PairSimilarities, "_block", noisy)
    found = metric.verify(THRESHOLDS, with_f1=True)
    assert found._replace(roc=None) == exact._replace(roc=None)
    check_against_scikit_learn(found, *all_pairs(embeddings, labels))


def test_the_count_is_the_largest_whose_fraction_is_allowed():
    assert largest_count(0.29, 100) == 29  # 0.29 * 100 is below 29 in floating point
    below = 0.8533475026567481  # the number before 803 / 941, times 941 rounds to 803
    assert below < 803 / 941
    assert largest_count(below, 941) == 802


def test_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])  # impostors: 0, 0.6, 0.6, 0.96
    metric = VerificationScores((0.5, 0.25, 0.2))
    metric.update(embeddings, torch.tensor([7, 7, 8, 8]))  # genuine: 0.8, 0.8
    result = metric.verify((0.96, 0.81))
    assert result.at_false_accept_rate[0.5][1:] == (0.25, 1)  # two of four impostors are tied at 0.6
    assert result.at_false_accept_rate[0.5].threshold == np.nextafter(np.float32(0.6), np.float32(1))
    assert math.isnan(result.at_false_accept_rate[0.2].threshold)
    assert result.at_threshold[0.81] == (0.81, 0.25, 0)
    assert result.equal_error_rate == 0.25
    assert metric.compute() == {
        "tar@far=0.5": torch.tensor(1.0),
        "tar@far=0.25": torch.tensor(1.0),
        "tar@far=0.2": pytest.approx(torch.nan, nan_ok=True),
        "eer": torch.tensor(0.25),
    }


def test_a_collapsed_network_has_no_operating_point():
    metric = VerificationScores((0.5, 0.1))
    metric.update(torch.ones(40, 7), torch.arange(40) // 4)
    result = metric.verify()
    assert result.at_false_accept_rate[0.5][1:] == (0, 0)
    assert result.equal_error_rate == 0.5


def test_queries_gallery_and_cameras():
    embeddings, labels = clustered(120, 6, 12, 1.0)
    generator = torch.Generator().manual_seed(5)
    is_query, cameras = torch.rand(120, generator=generator) < 0.4, torch.randint(0, 3, (120,), generator=generator)
    is_gallery = ~is_query | (torch.rand(120, generator=generator) < 0.2)
    metric = VerificationScores((0.1, 0.01))
    for part in torch.randperm(120, generator=generator).split(50):
        roles = is_query[part], is_gallery[part], cameras[part]
        metric.update(embeddings[part], labels[part], part, *roles)
    unit = F.normalize(embeddings.double(), dim=1)
    pairs = [(q, g) for q in is_query.nonzero().flatten() for g in is_gallery.nonzero().flatten()]
    pairs = [(q, g) for q, g in pairs if labels[q] != labels[g] or (q != g and cameras[q] != cameras[g])]
    similarities = np.array([float((unit[q] @ unit[g]).float()) for q, g in pairs])
    is_genuine = np.array([bool(labels[q] == labels[g]) for q, g in pairs])
    check_against_scikit_learn(metric.verify((0.5,), with_f1=True), similarities, is_genuine)


def test_dot_products_keep_their_unit():
    embeddings, labels = clustered(100, 4, 10, 1.0)
    metric = VerificationScores((0.1,), normalize=False)
    metric.update(100 * embeddings.double(), labels)
    point = metric.verify().at_false_accept_rate[0.1]
    dots = 1e4 * (embeddings.double() @ embeddings.double().T)
    i, j = torch.triu_indices(100, 100, 1)
    accepted = dots[i, j] >= point.threshold
    assert point.true_accept_rate == accepted[labels[i] == labels[j]].double().mean()
    assert point.false_accept_rate == accepted[labels[i] != labels[j]].double().mean()
    assert metric.verify((point.threshold,)).at_threshold[point.threshold] == point


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(verification, "EXACT_CURVE_PAIRS", 2**20)
    embeddings, labels = clustered(5000, 8, 1000, 0.5)
    items = LabelledEmbeddings(EmbeddingBlocks(embeddings), labels, torch.arange(5000))
    peak = peak_tensor_bytes(lambda: verify(items, with_f1=True))
    assert peak < 45 * 2**20  # all similarities are 100 MB


@pytest.mark.parametrize("rate", [0, 1, -0.1, "eer", True, math.nan])
def test_wrong_rates_are_refused(rate):
    with pytest.raises(ValueError, match="a false accept rate must be a number above 0 and below 1"):
        VerificationScores([rate])


def test_one_kind_of_pairs_is_refused():
    metric = VerificationScores()
    metric.update(torch.rand(4, 3), torch.ones(4).long())
    with pytest.raises(ValueError, match="All 6 pairs show the same class, so there is no false accept rate"):
        metric.compute()
    metric.reset()
    metric.update(torch.rand(4, 3), torch.arange(4))
    with pytest.raises(ValueError, match="None of the 6 pairs shows the same class, so there is no true accept rate"):
        metric.compute()


def test_embeddings_that_are_all_alike_are_refused_if_they_are_too_many(monkeypatch):
    monkeypatch.setattr(verification, "EXACT_CURVE_PAIRS", 0)
    monkeypatch.setattr(verification, "MAX_SELECTED_PAIRS", 700)
    metric = VerificationScores()
    metric.update(torch.ones(40, 7), torch.arange(40) // 4)
    with pytest.raises(ValueError, match="780 pairs are too close to the wanted thresholds, more than 700"):
        metric.compute()
