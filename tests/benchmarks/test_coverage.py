import re

import pytest
import torch

from lightning_recall.benchmarks.coverage import POPULATIONS, cell, draw_beta, draw_scores, main


def test_prints_a_row_for_each_population(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    main(["--classes", "10", "100", "--populations", "20"])
    shown = capsys.readouterr().out
    for population in POPULATIONS:
        assert re.search(rf"│ {population.name} +│ none +│ [\d.]+ ", shown)


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda population: population.name)
def test_the_truth_is_the_mean_of_large_populations(population):
    scores, labels = draw_scores(population, 2000, 2, torch.Generator().manual_seed(0))
    for values in scores.values():
        assert values.nanmean().item() == pytest.approx(population.truth, abs=0.03)
        sizes = torch.bincount(labels, (~values.isnan()).double())
        assert int(sizes.min()) >= 2
        assert (int(sizes.max()) == 10) == (population.sizes == "equal")


def test_beta_draws_have_the_moments_of_the_distribution():
    drawn = draw_beta(torch.full((50_000,), 0.3, dtype=torch.float64), 4, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.005)
    assert drawn.var().item() == pytest.approx(0.3 * 0.7 / 5, abs=0.002)


def test_cells():
    assert [cell(0, 0, 10), cell(10, 9, 10), cell(5, 5, 10)] == ["none", "90.0", "100.0 (50)"]
