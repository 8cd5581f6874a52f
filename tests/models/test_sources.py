import json

import pytest
import timm
import torch

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall.models import sources


@pytest.fixture(params=["test_vit", "test_resnet"])
def folder(request, tmp_path):
    """A folder of timm, whose arguments and normalisation are not the defaults of its architecture."""
    args = {"test_vit": {"img_size": 96, "depth": 2, "global_pool": "token"}, "test_resnet": {"stem_width": 8}}
    model = timm.create_model(request.param, num_classes=0, **args[request.param])
    config = {**timm.get_pretrained_cfg(request.param).to_dict(), "mean": [0.1, 0.2, 0.3], "input_size": [3, 96, 96]}
    content = {"architecture": request.param, "num_classes": 0, "model_args": args[request.param]}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**content, "pretrained_cfg": config}))
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    return tmp_path / "model"


@pytest.mark.parametrize("pooling", [None, "gem"])
def test_a_model_of_a_folder_is_saved_without_the_folder(folder, pooling, tmp_path):
    embedder = ImageEmbedder(f"local-dir:{folder}", 4, pooling=pooling)
    module = RetrievalModule(embedder, RecallAtKLoss()).eval()
    module.save_pretrained(tmp_path / "saved")
    folder.rename(tmp_path / "moved")
    again = RetrievalModule.from_pretrained(tmp_path / "saved")
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    assert torch.equal(again(images), module(images))
    assert again.image_size == module.image_size == 96
    text = (tmp_path / "saved" / "config.json").read_text() + (tmp_path / "saved" / "README.md").read_text()
    assert "local-dir" not in text
    assert str(tmp_path) not in text
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "saved" / "config.json").read_text()


def test_the_arguments_of_a_repository_are_those_of_its_config(monkeypatch):
    monkeypatch.setattr("timm.models.load_model_config_from_hf", lambda name: ({}, "test_vit", {"of": name}))
    assert sources.model_arguments("hf-hub:me/net@v1") == {"of": "me/net@v1"}
    assert sources.model_arguments("resnet50") == {}
