import numpy as np
import pytest
import torch

from lightning_recall.metrics import VerificationScores
from lightning_recall.plots import draw_verification
from lightning_recall.plots.verification import deviate, drawn_points
from lightning_recall.search import OperatingPoint, RocCurve


def verification(size=200):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) // 5
    embeddings = torch.randn(size, 8, generator=generator)[labels] + torch.randn(size, 8, generator=generator)
    metric = VerificationScores((0.1, 0.01))
    metric.update(embeddings, labels)
    return metric.verify()


def test_both_curves_show_the_rates():
    result = verification()
    roc, det = draw_verification(result.roc, {"saved threshold": result.at_false_accept_rate[0.01]}).axes
    rates, accepted = roc.lines[0].get_data()
    for rate in (0.1, 0.01):
        assert np.interp(rate, rates, accepted) == pytest.approx(
            100 * result.at_false_accept_rate[rate].true_accept_rate, abs=2
        )
    x, y = det.lines[0].get_data()
    crossing = x[np.argmin(np.abs(x - y))]
    assert crossing == pytest.approx(deviate(result.equal_error_rate), abs=0.05)
    (text,) = roc.get_legend().get_texts()
    assert text.get_text().startswith("saved threshold 0.")
    threshold, far, tar = result.at_false_accept_rate[0.01]
    assert roc.lines[-1].get_data()[1] == [pytest.approx(100 * tar)]
    assert roc.lines[-1].get_data()[0] == pytest.approx([far])
    assert text.get_text() == f"saved threshold {threshold:.3f}: FAR {100 * far:.2g} %, TAR {100 * tar:.3g} %"
    assert det.lines[-1].get_data()[0] == pytest.approx([deviate(far)])
    assert det.lines[-1].get_data()[1] == pytest.approx([deviate(1 - tar)])
    for axis in (det.xaxis, det.yaxis):  # in percent, where the rates are
        ticks = dict(zip([label.get_text() for label in axis.get_ticklabels()], axis.get_ticklocs(), strict=True))
        assert ticks["5"] == pytest.approx(-1.6449, abs=1e-4)
        assert ticks["0.0001"] == pytest.approx(-4.7534, abs=1e-4)


def test_perfect_and_useless_similarities_can_be_drawn(tmp_path):
    for far, tar in (([0, 0, 1], [0, 1, 1]), ([0, 1], [0, 1])):
        curve = RocCurve(np.array(far, float), np.array(tar, float), np.linspace(1, 0, len(far)))
        figure = draw_verification(curve, {"equal error": OperatingPoint(0.5, 0.0, 1.0)})
        marked = figure.axes[0].lines[-1].get_data()[0]
        assert marked[0] > 0  # on a logarithmic axis
        figure.savefig(tmp_path / "curve.png", dpi=30)


def test_long_curves_are_thinned_out_and_keep_their_ends():
    far = np.concatenate([[0], np.linspace(1e-6, 1, 50_000)])
    shown = drawn_points(far)
    assert len(shown) <= 2000
    assert (shown[0], shown[-1]) == (0, 50_000)
    assert (np.diff(np.log10(far[shown][1:])) < 0.4).sum() > 900
