import statistics

import pytest
import torch
from torch import nn

from lightning_recall.benchmarks import side_by_side_measure as measures
from lightning_recall.benchmarks.side_by_side_task import Row


def loss(embed, batch):
    return embed(batch).square().mean()


def train(scale, model, batches, optimizer):
    stepped = optimizer(model.parameters())
    for batch in batches:
        (scale * loss(model, batch)).backward()
        stepped.step()
        stepped.zero_grad()


class Lines:
    """A task with one linear layer."""

    items, batch_size = "images", 4

    def rows(self):
        return [Row(f"times {scale}", "square", lambda *args, s=scale: train(s, *args), loss) for scale in (1, 0.5)]

    def build(self, dropout=0.0):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.Dropout(dropout))

    def batches(self, count):
        return [torch.full((4, 3), float(index + 1)) for index in range(count)]

    def in_chunks(self, model):
        return lambda batch: torch.cat([model(chunk) for chunk in torch.split(batch, 2)])

    def score(self, model):
        return float(loss(model, self.batches(1)[0]).detach())


@measures.double_precision
def errors():
    class Doubles(Lines):
        def batches(self, count):
            return [batch.double() for batch in super().batches(count)]

    return [measures.gradient_error(Doubles(), row) for row in Doubles().rows()]


def test_a_wrong_gradient_has_an_error():
    right, wrong = errors()
    assert right < 1e-14
    assert wrong == pytest.approx(0.5)
    assert torch.get_default_dtype() == torch.float32


def test_the_rows_take_turns():
    rows = Lines().rows()
    names, times = zip(*measures.step_seconds(Lines(), rows, rounds=2, steps=3), strict=True)
    assert names == ("times 1, square", "times 0.5, square") * 2
    assert statistics.fmean(times) > 0


def test_training_lowers_what_the_score_measures():
    (row, _) = Lines().rows()
    threads = torch.get_num_threads()
    untrained = measures.score_after(Lines(), row, -1.0, pool=1)
    assert measures.score_after(Lines(), row, 0.3, pool=1) < untrained == Lines().score(Lines().build())
    assert torch.get_num_threads() == threads
