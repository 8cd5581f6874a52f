import torch

from lightning_recall.benchmarks import segmentation_losses


def test_prints_times_and_memory(capsys):
    segmentation_losses.main(["--images=2", "--classes=3", "--height=40", "--width=24", "--repeats=1"])
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert "logits 2 x 3 x 40 x 24" in out
    names = [row[0] for row in rows]
    assert names[0] == "F.cross_entropy"
    assert {"RecallCrossEntropyLoss", "BCE with logits", "StructuralSimilarityLoss"} <= set(names)
    for row in rows:
        assert float(row[2]) > 0
        assert row[2] == "1.00" or not row[0].startswith(("F.", "BCE"))


def test_the_logits_are_right_at_most_pixels():
    logits, target = segmentation_losses.scene(2, 5, 20, 30, torch.device("cpu"))
    assert logits.shape == (2, 5, 20, 30)
    assert 0.8 < (logits.argmax(1) == target).double().mean() < 1
