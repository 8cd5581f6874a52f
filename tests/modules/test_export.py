import json

import pytest
import torch
from exported_networks import make_embedder
from torch import nn

from lightning_recall import RecallAtKLoss, RetrievalModule
from lightning_recall.data import ImageTransforms
from lightning_recall.modules import export_module
from lightning_recall.modules.export import preprocessing_settings


def make_module(**transforms):
    module = RetrievalModule(make_embedder("small")[0], RecallAtKLoss())
    module.image_transforms = ImageTransforms(**{"size": 32, "mode": "L", **transforms})
    return module


@pytest.mark.skipif(torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9")
def test_the_file_takes_what_preprocess_makes(tmp_path):
    module = make_module().train()
    report = export_module(module, tmp_path / "model.pt2")
    assert module.embedder.training
    extra = {"preprocessing": ""}
    program = torch.export.load(report.path, extra_files=extra).module()
    expected = {"size": 32, "resize": 37, "longest_side": None, "mode": "L", "reducing_gap": 2.0}
    assert json.loads(extra["preprocessing"]) == expected
    image = module.preprocess(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(program(image[None]), module.eval()(image[None]), atol=1e-5, rtol=0)
    assert export_module(module, tmp_path / "half.pt2", half=True).precision == "float16"


def test_other_suffixes_raise(tmp_path):
    for name, got in (("model.pth", ".pth"), ("model", "no suffix")):
        with pytest.raises(ValueError, match=rf"must end with \.onnx .* or \.xml \(OpenVINO\), got {got}\.$"):
            export_module(make_module(), tmp_path / name)


def test_preprocessing_that_a_file_cannot_hold_raises():
    module = make_module()
    module.image_transforms = None
    with pytest.raises(ValueError, match=r"unknown or code.*set module\.image_transforms"):
        preprocessing_settings(module)
    with pytest.raises(ValueError, match="unknown or code"):
        preprocessing_settings(make_module(eval_transform=nn.Identity()))
    with pytest.raises(ValueError, match="With longest_side=64 images have different sizes"):
        preprocessing_settings(make_module(longest_side=64))
