import json

import pytest
import torch
from conftest import draw

from lightning_recall import RetrievalModule
from lightning_recall.cli.tools import run_tool
from lightning_recall.losses import ContrastiveLoss

pytestmark = pytest.mark.usefixtures("quick_parsing")


def test_a_training_of_the_command_is_shared(command, small_data, in_tmp_path, capsys):
    """The backbone starts from a file of weights, which the shared model does not name."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), in_tmp_path / "weights.safetensors")
    root = small_data("image_folder")
    (in_tmp_path / "own.yaml").write_text(
        f"""
seed_everything: 0
model:
  class_path: RetrievalModule
  init_args:
    embedder:
      class_path: ImageEmbedder
      init_args: {{backbone: test_resnet, embedding_dim: 4, pretrained: {in_tmp_path}/weights.safetensors}}
    loss: RecallAtKLoss
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.1}}}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, batch_size: 8, samples_per_class: 2, val_classes: 1, transforms: {{size: 64}}}}
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  callbacks: [{{class_path: ModelCheckpoint, init_args: {{dirpath: kept, filename: a}}}}, {{class_path: ModelSaver}}]
"""
    )
    command("fit", "--config", "own.yaml")
    command("test", "--config", "own.yaml", "--ckpt_path", "kept/a.ckpt")
    draw(in_tmp_path / "found.png")
    run_tool("share", ["kept/a.ckpt", "--to", "shared", "--license", "mit", "--picture", "found.png"])
    assert "Model, for RetrievalModule.from_pretrained: shared" in capsys.readouterr().out
    weights = torch.load("kept/a.ckpt", weights_only=True)["state_dict"]
    (tested,) = in_tmp_path.glob("runs/version_*/model")
    for folder in ("shared", tested):
        module = RetrievalModule.from_pretrained(folder)
        assert all(torch.equal(module.state_dict()[key], value) for key, value in weights.items())
        assert module.embedder.freeze_batch_norm  # as for pretrained weights
        assert module.preprocess("found.png").shape == (3, 64, 64)
        text = (in_tmp_path / folder / "config.json").read_text() + (in_tmp_path / folder / "README.md").read_text()
        assert str(in_tmp_path) not in text
        assert str(root.parent) not in text
        assert '"code": "SGD(lr=0.1, ' in text
        assert (
            json.loads((in_tmp_path / folder / "config.json").read_text())["training"]["recipe"]["optimizer"] == "SGD"
        )
    assert "test/recall@1" in RetrievalModule.from_pretrained(tested).training_record["scores"]
    with pytest.raises(ValueError, match="shared holds a model already"):
        run_tool("share", ["kept/a.ckpt", "--to", "shared"])
    with pytest.raises(FileNotFoundError, match=r"no\.ckpt"):
        run_tool("share", ["no.ckpt", "--to", "other"])
    (in_tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ckpt is not a checkpoint of RetrievalModule: it is damaged, or not"):
        run_tool("share", ["text.ckpt", "--to", "other"])
    with pytest.raises(ValueError, match=r"shared is a folder: pass a checkpoint"):
        run_tool("share", ["shared", "--to", "other"])
    assert not (in_tmp_path / "other").exists()


def test_a_model_card_that_exists_is_kept(in_tmp_path, capsys, monkeypatch):
    module = RetrievalModule(torch.nn.Flatten(), ContrastiveLoss())
    monkeypatch.setattr(RetrievalModule, "load_from_checkpoint", lambda *_, **__: module)
    (in_tmp_path / "shared").mkdir()
    (in_tmp_path / "shared" / "README.md").write_text("mine")
    run_tool("share", ["a.ckpt", "--to", "shared"])
    assert "No model card was written, because shared/README.md existed." in capsys.readouterr().out
    assert (in_tmp_path / "shared" / "README.md").read_text() == "mine"
    run_tool("share", ["a.ckpt", "--to", "new"])
    assert "No model card" not in capsys.readouterr().out
