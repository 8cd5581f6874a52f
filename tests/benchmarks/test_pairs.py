import re

import torch

from lightning_recall.benchmarks.pairs import main, operating_points


def test_prints_its_table(capsys):
    main(["--size", "2000", "--dim", "8"])
    shown = capsys.readouterr().out
    assert "1,999,000 pairs, D = 8" in shown
    for row in ("matrix product", "verify"):
        assert len(re.findall(rf"│ {row} ", shown)) == 1
    assert re.search(r"TAR in % at FAR: [\d.]+ at 0.1,", shown)


def test_measures_all_pairs():
    result = operating_points(torch.rand(30, 4), torch.arange(30) // 3)
    assert (result.num_genuine, result.num_impostor) == (30, 405)
