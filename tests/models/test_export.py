import sys

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from lightning_recall.models import ImageEmbedder, SmallConvNet, export_onnx


@pytest.mark.skipif(torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9")
@pytest.mark.parametrize("backbone", ["small", "resnet10t", "test_vit"])
def test_onnxruntime_equals_pytorch(backbone, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")  # an optional dependency
    pytest.importorskip("onnxscript")  # an optional dependency
    channels, size = (1, 32) if backbone == "small" else (3, 160)
    embedder = ImageEmbedder(
        SmallConvNet() if backbone == "small" else backbone,
        embedding_dim=16,
        pretrained=False,
        norm="batch" if backbone == "small" else "layer",
    )
    images = torch.randint(0, 256, (5, channels, size, size), dtype=torch.uint8)
    embedder(images)  # running statistics that differ from their initial values
    training = embedder.training
    export_onnx(embedder, tmp_path / "embedder.onnx", size, channels)
    assert embedder.training == training
    session = onnxruntime.InferenceSession(tmp_path / "embedder.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = embedder.eval()(images)
    for count in (1, 5):
        (found,) = session.run(["embeddings"], {"images": images[:count].numpy()})
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["embedder.onnx"]


@pytest.mark.skipif(torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9")
def test_a_convnet_is_exported_for_any_image_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")  # an optional dependency
    pytest.importorskip("onnxscript")  # an optional dependency
    embedder = ImageEmbedder("resnet10t", 16, pretrained=False).eval()
    export_onnx(embedder, tmp_path / "embedder.onnx", 96, dynamic_size=True)
    session = onnxruntime.InferenceSession(tmp_path / "embedder.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((96, 96), (70, 131)):
        images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
        (found,) = session.run(["embeddings"], {"images": images.numpy()})
        np.testing.assert_allclose(found, embedder(images).detach(), atol=1e-5)


def test_a_fixed_size_cannot_be_dynamic(tmp_path):
    pytest.importorskip("onnxscript")  # an optional dependency
    message = r"^dynamic_size=True needs a backbone that accepts images of any size.* \(SmallConvNet expects .*\)$"
    with pytest.raises(ValueError, match=message):
        export_onnx(ImageEmbedder(SmallConvNet(), 8), tmp_path / "x.onnx", 32, channels=1, dynamic_size=True)


def test_missing_requirements_raise(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.1"))
    with pytest.raises(RuntimeError, match=r"needs torch 2.9 or later, this is 2.8.1"):
        export_onnx(torch.nn.Identity(), tmp_path / "x.onnx", 32)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.15.0"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install lightning-recall\[onnx\]"):
        export_onnx(torch.nn.Identity(), tmp_path / "x.onnx", 32)
