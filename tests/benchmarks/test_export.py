import pytest
import torch
from exported_networks import make_embedder

from lightning_recall.benchmarks import export


@pytest.mark.skipif(torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9")
def test_prints_cosines_sizes_and_speed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(export, "random_embedder", lambda *_: make_embedder("convnext")[0])
    monkeypatch.setattr(export, "FORMATS", {"torch.export": export.FORMATS["torch.export"]})
    monkeypatch.setattr(export, "interleaved_times", lambda runs, *_: [float(2 * i + 1) for i in range(len(runs))])
    export.main(["--families", "ConvNeXt", "--size", "32"])
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert "torch" in shown.splitlines()[0]
    assert [row[:3] for row in rows] == [["ConvNeXt", "torch.export", name] for name in ("float32", "float16")]
    assert [row[-1] for row in rows] == ["0.33", "0.20"]
    assert float(rows[0][4]) < 1e-9 < float(rows[1][4]) < 1e-3


@pytest.mark.parametrize("family", ["ViT", "ConvNeXt"])
def test_networks_tell_images_apart(family):
    embedder = export.random_embedder(export.FAMILIES[family], 56 if family == "ConvNeXt" else 64)
    images = export.example_images(56 if family == "ConvNeXt" else 64, 3)
    embeddings = export.embed(embedder, images)
    assert (embeddings @ embeddings.T).min() < 0.9
