import time

import torch

from lightning_recall.benchmarks.side_by_side_task import Batches


def test_repeats_the_batches_with_the_same_seeds_and_notes_the_times():
    requests = Batches(["a", "b", "c"], 5)
    assert len(requests) == 5
    drawn = [(batch, torch.rand(1).item()) for batch in requests]
    assert [batch for batch, _ in drawn] == ["a", "b", "c", "a", "b"]
    assert drawn == [(batch, torch.rand(1).item()) for batch in Batches(["a", "b", "c"], 5)]
    assert len({number for _, number in drawn}) == 5
    assert requests.times == sorted(requests.times)
    assert len(requests.times) == 5


def test_stops_after_the_given_processor_time():
    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    done = [work() for _ in Batches(["a"], 10**6, seconds=0.12)]
    assert len(done) == 3
