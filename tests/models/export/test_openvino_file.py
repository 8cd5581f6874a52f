import json
import sys

import pytest
import torch
from exported_networks import make_embedder

from lightning_recall.models import export_openvino

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9"
)


@pytest.mark.parametrize(("family", "half"), [("small", False), ("dinov2", True)])
def test_openvino_equals_pytorch(family, half, tmp_path):
    openvino = pytest.importorskip("openvino")  # an extra
    pytest.importorskip("onnxscript")  # an extra
    embedder, size = make_embedder(family)
    channels, settings = (1 if family == "small" else 3), {"size": size, "mode": "RGB"}
    report = export_openvino(embedder, tmp_path / "embedder.xml", size, channels, half, settings)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["embedder.bin", "embedder.xml"]
    assert report.num_bytes == sum(path.stat().st_size for path in files)
    full = sum(parameter.numel() * 4 for parameter in embedder.parameters())
    assert files[0].stat().st_size == pytest.approx(full / 2 if half else full, rel=0.05)
    model = openvino.Core().read_model(tmp_path / "embedder.xml")
    assert json.loads(model.get_rt_info("preprocessing").value) == settings
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = torch.randint(0, 256, (5, channels, size, size), dtype=torch.uint8)
    for count in (1, 5):
        found = torch.from_numpy(compiled({"images": images[:count].numpy()})["embeddings"])
        expected = embedder(images[:count]).detach()
        torch.testing.assert_close(found, expected, atol=1e-2 if half else 1e-5, rtol=0)
    assert report.between_images < 0.9
    assert min(report[3:5]) > 1 - (1e-4 if half else 1e-6)


def test_without_openvino(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-recall\[openvino\]"'):
        export_openvino(torch.nn.Identity(), tmp_path / "x.xml", 32)
