import pytest
import torch

from lightning_recall.benchmarks import loss_speed

# Replaces a clone of the published code: the same formula in three lines; it infers classes from the position too.
CLONE = """
import torch
class RecallatK(torch.nn.Module):
    def __init__(self, anneal, batch_size, num_id, feat_dims, k_vals, k_temperatures, mixup):
        super().__init__()
        self.tau, self.m, self.ks = anneal, batch_size // num_id, torch.tensor(k_vals, dtype=torch.float32).cuda()
    def forward(self, preds, q):
        s, n, first = preds @ preds[q], len(preds), q // self.m * self.m
        x = torch.tensor([i for i in range(first, first + self.m) if i != q])
        ranks = 0.5 + torch.sigmoid((s[:, None] - s[x]) / self.tau).sum(0)
        hits = torch.minimum(torch.sigmoid(self.ks - ranks[:, None]).sum(0), self.ks)
        return (1 - (hits / self.ks.clamp(max=self.m - 1)).mean()) / n
"""


def test_prints_ratios_and_equals_the_clone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "losses.py").write_text(CLONE)
    sizes = ["--sizes", "64", "--dim", "16", "--repeats", "1", "--published", str(tmp_path)]
    loss_speed.main([*sizes, "--published-sizes", "40", "--published-mixed", "24"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row]
    assert [row[2] for row in rows[:5]] == ["64", "64", "64", "160", "160"]
    assert [row[0] for row in rows[5:7]] == ["RecallAtKLoss", "SupRecallAtKLoss"]
    assert all(float(row[column]) > 0 for row in rows[5:13] for column in (2, 4))
    assert [row[0] for row in rows[13:]] == ["40", "60 SiMix"]
    for row in rows[13:]:
        assert float(row[-2]) < 1e-6
        assert float(row[-1]) < 1e-6
    assert torch.Tensor.cuda is not None


def test_compares_dimensions_and_class_sizes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    sizes = ["--sizes", "64", "--dim", "16", "--repeats", "1", "--dims", "8", "--class-sizes", "2", "32"]
    loss_speed.main(sizes)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row][-3:]
    assert [row[:2] for row in rows] == [["8", "4"], ["16", "2"], ["16", "32"]]
    for row in rows:
        products = float(row[3])
        for cell in row[4:]:
            ratio, nanoseconds = (float(part) for part in cell.rstrip(")").split("("))
            assert ratio * products == pytest.approx(nanoseconds, rel=0.05, abs=0.2)


def test_a_folder_without_a_clone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give the folder of a clone"):
        loss_speed.main(["--sizes", "16", "--dim", "8", "--repeats", "1", "--published", str(tmp_path)])
