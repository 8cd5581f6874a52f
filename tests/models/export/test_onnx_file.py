import json
import sys

import numpy as np
import pytest
import torch
from exported_networks import make_embedder
from torch.torch_version import TorchVersion

from lightning_recall.models import ImageEmbedder, SmallConvNet, export_onnx

needs_exporter = pytest.mark.skipif(
    torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9"
)


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnxscript")  # an optional dependency
    return pytest.importorskip("onnxruntime")  # an optional dependency


@needs_exporter
@pytest.mark.parametrize("family", ["small", "swin", "dinov2"])
def test_onnxruntime_equals_pytorch(family, tmp_path, onnxruntime):
    embedder, size = make_embedder(family)
    embedder.train()
    channels = 1 if family == "small" else 3
    settings = {"size": size, "mode": "RGB"}
    report = export_onnx(embedder, tmp_path / "embedder.onnx", size, channels, preprocessing=settings)
    assert embedder.training
    embedder.eval()
    images = torch.randint(0, 256, (5, channels, size, size), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "embedder.onnx", providers=["CPUExecutionProvider"])
    expected = embedder(images).detach()
    for count in (1, 5):
        (found,) = session.run(["embeddings"], {"images": images[:count].numpy()})
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["embedder.onnx"]
    assert min(report[3:5]) > 1 - 1e-6
    assert report.between_images < 0.9
    content = report.path.read_bytes()
    assert (report.precision, report.num_bytes) == ("float32", len(content))
    assert json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"]) == settings
    assert b"lightning_recall/" not in content  # stack traces tell the paths of this machine


@needs_exporter
def test_half_precision_halves_the_weights(tmp_path, onnxruntime):
    embedder, size = make_embedder("dinov2")
    full = sum(parameter.numel() * 4 for parameter in embedder.parameters())
    report = export_onnx(embedder, tmp_path / "embedder.onnx", size, half=True)
    assert report.precision == "float16"
    assert 0.5 * full < report.num_bytes < 0.8 * full
    assert 1e-9 < 1 - report.cosine_7 < 1e-4
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    (found,) = session.run(["embeddings"], {"images": images.numpy()})
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert {parameter.dtype for parameter in embedder.parameters()} == {torch.float32}


@needs_exporter
def test_a_convnet_is_exported_for_any_image_size(tmp_path, onnxruntime):
    embedder, _ = make_embedder("convnet")
    export_onnx(embedder, tmp_path / "embedder.onnx", 96, dynamic_size=True)
    session = onnxruntime.InferenceSession(tmp_path / "embedder.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((96, 96), (70, 131)):
        images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
        (found,) = session.run(["embeddings"], {"images": images.numpy()})
        np.testing.assert_allclose(found, embedder(images).detach(), atol=1e-5)


@needs_exporter
@pytest.mark.usefixtures("onnxruntime")
def test_a_fixed_size_cannot_be_dynamic(tmp_path):
    message = r"^dynamic_size=True needs a backbone that accepts images of any size.* \(SmallConvNet expects .*\)$"
    with pytest.raises(ValueError, match=message):
        export_onnx(ImageEmbedder(SmallConvNet(), 8), tmp_path / "x.onnx", 32, channels=1, dynamic_size=True)
    assert list(tmp_path.iterdir()) == []


def test_missing_requirements_raise(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.1"))
    with pytest.raises(RuntimeError, match=r"needs torch 2.9 or later, this is 2.8.1"):
        export_onnx(torch.nn.Identity(), tmp_path / "x.onnx", 32)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.15.0"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-recall\[onnx\]"'):
        export_onnx(torch.nn.Identity(), tmp_path / "x.onnx", 32)
