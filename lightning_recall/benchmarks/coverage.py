"""How often the 95 % bootstrap interval over classes covers the true mean of a score, in simulated populations.

Each class has its own expected score, drawn from a beta distribution, and a random number of queries; the true mean
over all classes is known. Cells show the covered populations in percent and, in brackets, the populations that get an
interval, if not all do.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from lightning_recall.benchmarks.measure import machine
from lightning_recall.metrics.bootstrap import class_bootstraps

NUM_TOGETHER = 50  # populations that share the draws of a bootstrap, as the scores of a search do
MAX_QUERIES = 100  # of a class


class Population(NamedTuple):
    """Classes of queries with a score.

    name: in the table.
    mean: expected score of a query of any class.
    concentration: of the beta distribution of the classes' expected scores; they differ more if it is small.
    sizes: "equal": 10 queries each; "unequal": 2 and more, 10 on average; "heavy": log-normal, up to 100.
    kind: "binary" such as recall, "continuous" such as map@r, or "difference" of two models with equal expected recall,
        whose score is that of both for nine of ten queries.
    """

    name: str
    mean: float
    concentration: float
    sizes: str
    kind: str

    @property
    def truth(self) -> float:
        """The true mean."""
        return 0.0 if self.kind == "difference" else self.mean


POPULATIONS = (
    Population("recall 50 %, equal classes", 0.5, 4, "equal", "binary"),
    Population("recall 84 %, unequal classes", 0.84, 4, "unequal", "binary"),
    Population("mAP 84 %, unequal classes", 0.84, 4, "unequal", "continuous"),
    Population("recall 84 %, very unequal", 0.84, 1, "heavy", "binary"),
    Population("recall 99 %, unequal classes", 0.99, 20, "unequal", "binary"),
    Population("recall 99 %, very different", 0.99, 1, "unequal", "binary"),
    Population("recall 2 %, very unequal", 0.02, 10, "heavy", "binary"),
    Population("difference, unequal classes", 0.84, 4, "unequal", "difference"),
    Population("difference, very unequal", 0.84, 1, "heavy", "difference"),
)


def draw_sizes(sizes: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Numbers of queries (C, P) of the classes of P populations."""
    if sizes == "equal":
        return torch.full(shape, 10)
    if sizes == "unequal":
        return (torch.zeros(shape).geometric_(1 / 8, generator=generator).long() + 2).clamp(max=MAX_QUERIES)
    logarithms = 1.2 + 1.2 * torch.randn(shape, generator=generator)
    return (2 + logarithms.exp().long()).clamp(max=MAX_QUERIES)


def draw_beta(mean: Tensor, concentration: float, generator: torch.Generator) -> Tensor:
    """Draws from beta distributions with the given means (...) and concentration."""
    parts = torch.stack([mean, 1 - mean]).clamp(min=1e-9) * concentration
    first, second = torch._standard_gamma(parts, generator=generator).clamp(min=1e-300)
    drawn: Tensor = first / (first + second)
    return drawn


def draw_scores(
    population: Population, num_classes: int, num_populations: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Scores (Q,) of each population, NaN beyond the size of a class, and labels (Q,)."""
    sizes = draw_sizes(population.sizes, (num_classes, num_populations), generator)  # (C, P)
    means = torch.full(sizes.shape, population.mean, dtype=torch.float64)
    means = draw_beta(means, population.concentration, generator)[:, None].expand(-1, int(sizes.max()), -1)  # (C, n, P)
    if population.kind == "continuous":
        scores = draw_beta(means, 2, generator)
    else:
        scores = torch.bernoulli(means, generator=generator)
    if population.kind == "difference":
        other = torch.bernoulli(means, generator=generator)
        differs = torch.rand(means.shape, generator=generator) < 0.1
        scores = torch.where(differs, other - scores, 0.0)
    scores = scores.masked_fill(torch.arange(scores.shape[1])[:, None] >= sizes[:, None], torch.nan)
    labels = torch.arange(num_classes).repeat_interleave(scores.shape[1])
    return dict(zip(map(str, range(num_populations)), scores.flatten(0, 1).unbind(1), strict=True)), labels


def coverage(population: Population, num_classes: int, num_populations: int, seed: int) -> tuple[int, int]:
    """Number of populations that get an interval, and number of intervals that cover the true mean."""
    generator = torch.Generator().manual_seed(seed)
    shown = covered = 0
    for start in range(0, num_populations, NUM_TOGETHER):
        count = min(NUM_TOGETHER, num_populations - start)
        scores, labels = draw_scores(population, num_classes, count, generator)
        for interval in class_bootstraps(
            scores, labels, seed=start, differences=population.kind == "difference"
        ).values():
            shown += not interval.reason
            covered += interval.lower <= population.truth <= interval.upper  # False without an interval: NaN
    return shown, covered


def cell(shown: int, covered: int, num_populations: int) -> str:
    """Coverage in percent and, if not all populations get an interval, the percentage of those that do."""
    if not shown:
        return "none"
    some = f" ({100 * shown / num_populations:.0f})" if shown < num_populations else ""
    return f"{100 * covered / shown:.1f}{some}"


def main(args: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 20, 30, 100, 300, 1000])
    parser.add_argument("--populations", type=int, default=2000, help="simulated populations per cell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    heading = f"Coverage of 95 % intervals in %, {options.populations:,} populations per cell"
    caption = f"in brackets: % of the populations that get an interval\n{machine(torch.device('cpu'))}"
    table = Table("population", *(f"{number:,} classes" for number in options.classes), title=heading, caption=caption)
    for population in tqdm(POPULATIONS, unit="population", leave=False):
        cells = []
        for num_classes in options.classes:
            shown, covered = coverage(population, num_classes, options.populations, options.seed)
            cells.append(cell(shown, covered, options.populations))
        table.add_row(population.name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
