import re
from pathlib import Path

import pytest
import torch

from lightning_recall import RetrievalModule
from lightning_recall.cli import run

CONFIG = Path(__file__).parents[2] / "configs" / "your_images.yaml"
SMALL = (
    *("--model.embedder.backbone", "SmallConvNet", "--model.embedder.backbone.in_channels", 3),
    *("--data.transforms.size", 32, "--data.transforms.min_scale", 0.3, "--data.batch_size", 8),
    *("--data.num_workers", 0, "--model.embedder.embedding_dim", 8, "--trainer.limit_train_batches", 1),
    *("--trainer.max_epochs", 1, "--trainer.callbacks", "ModelCheckpoint", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.limit_val_batches", 0),
)
pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9"
)


@pytest.fixture
def exported(monkeypatch, capsys):
    """Runs the command with its arguments; returns its exit code, and what it printed."""

    def export(*args):
        monkeypatch.setattr("sys.argv", ["lightning-recall", "export", *map(str, args)])
        try:
            run()
        except SystemExit as stopped:
            return stopped.code, " ".join(capsys.readouterr().err.split())
        return 0, capsys.readouterr().out

    return export


def test_a_checkpoint_is_exported(command, small_data, in_tmp_path, exported, capsys):
    command("fit", "--config", CONFIG, "--data.root", small_data("image_folder"), *SMALL)
    (checkpoint,) = in_tmp_path.glob("runs/*/version_0/checkpoints/*.ckpt")
    capsys.readouterr()
    code, shown = exported(checkpoint, "--to", "model.pt2")
    assert code == 0, shown
    assert re.search(r"model\.pt2 │ float32 +│ +\d\.\d │ +[01]\.\d{7} │ +[01]\.\d{7} │", shown)
    module = RetrievalModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    images = module.preprocess(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8))[None]
    with torch.no_grad():
        found = torch.export.load("model.pt2").module()(images)
        torch.testing.assert_close(found, module(images), atol=1e-5, rtol=0)
    module.save_pretrained("shared")
    code, shown = exported("shared", "--to", "shared.pt2")
    assert code == 0, shown
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load("shared.pt2").module()(images), found, atol=0, rtol=0)
    before = Path("model.pt2").read_bytes()
    code, shown = exported(checkpoint, "--to", "model.pt2", "--fp16")
    assert (code, Path("model.pt2").read_bytes()) == (1, before)
    assert "error: model.pt2 exists, and is not overwritten: choose another name, or remove it." in shown


def test_wrong_arguments_are_answered_in_a_sentence(exported, in_tmp_path):
    code, shown = exported("none.ckpt", "--to", "model.onnx")
    assert code == 1
    assert "none.ckpt" in shown
    assert "Traceback" not in shown
    (in_tmp_path / "a.ckpt").write_text("not a checkpoint")
    code, shown = exported("a.ckpt", "--to", "model.pb")
    assert code == 1
    assert "model.pb: the file's name must end with .onnx (ONNX), .pt2 (torch.export) or .xml (OpenVINO)" in shown
    code, shown = exported("a.ckpt", "--to", "model.onnx")
    assert code == 1
    assert "a.ckpt is not a checkpoint of RetrievalModule: " in shown
    assert list(in_tmp_path.iterdir()) == [in_tmp_path / "a.ckpt"]


def test_what_torch_cannot_export_is_a_sentence(exported, monkeypatch):
    def fail(*_):
        raise RuntimeError("The exported model does not compute what PyTorch computes.\n details")

    monkeypatch.setattr("lightning_recall.commands.saved_model.load_model", lambda *_: None)
    monkeypatch.setattr("lightning_recall.modules.export_module", fail)
    code, shown = exported("a.ckpt", "--to", "model.onnx")
    assert code == 1
    assert "error: a.ckpt was not exported: The exported model does not compute what PyTorch computes." in shown
