import json
import zipfile

import pytest
import torch
from exported_networks import NETWORKS, make_embedder

from lightning_recall.models import LoRAEmbedder, export_program

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9"
)


@pytest.mark.parametrize("family", NETWORKS)
def test_a_program_equals_pytorch(family, tmp_path):
    embedder, size = make_embedder(family)
    report = export_program(embedder, tmp_path / "embedder.pt2", size)
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    program = torch.export.load(report.path).module()
    with torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(program(images[:count]), embedder(images[:count]), atol=1e-5, rtol=0)
    assert min(report[3:5]) > 1 - 1e-6
    assert report.between_images < 0.99
    with zipfile.ZipFile(report.path) as archive:
        graphs = [archive.read(name) for name in archive.namelist() if name.endswith("model.json")]
    assert len(graphs) == 1
    assert b"site-packages" not in graphs[0]  # stack traces tell the paths of this machine
    assert b"models/embedder.py" not in graphs[0]


def test_half_precision_and_settings(tmp_path):
    embedder, size = make_embedder("convnext")
    settings = {"size": size, "mode": "RGB"}
    report = export_program(embedder, tmp_path / "embedder.pt2", size, half=True, preprocessing=settings)
    assert 1e-9 < 1 - report.cosine_7 < 1e-4
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    extra = {"preprocessing": ""}
    program = torch.export.load(report.path, extra_files=extra)
    assert json.loads(extra["preprocessing"]) == settings
    assert {weight.dtype for weight in program.state_dict.values()} == {torch.float16}
    with torch.no_grad():
        found = program.module()(images)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found, embedder(images).detach(), atol=1e-2, rtol=0)


def test_lora_matrices_are_merged(tmp_path):
    pytest.importorskip("peft")  # an extra
    lora = LoRAEmbedder(make_embedder("dinov2")[0], rank=2)
    plain, size = make_embedder("dinov2")
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    lora.eval()
    report = export_program(lora, tmp_path / "embedder.pt2", size)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    program = torch.export.load(report.path)
    assert not [name for name in program.state_dict if "lora" in name]
    with torch.no_grad():
        found = program.module()(images)
        torch.testing.assert_close(found, lora(images), atol=1e-4, rtol=0)
        assert (found - plain(images)).abs().max() > 1e-2
