import warnings

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_recall.cli import run
from lightning_recall.cli.user_errors import explain


@pytest.mark.parametrize("kind", [ValueError, OSError, ImportError, MisconfigurationException, torch.OutOfMemoryError])
def test_errors_of_users_end_with_code_1(kind, monkeypatch, capsys):
    def broken():
        raise kind("no such thing")

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # `run` sets it for its process
    monkeypatch.setattr("sys.argv", ["lightning-recall", "fit"])
    monkeypatch.setattr("lightning_recall.cli.command.execute", broken)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    assert "no such thing" in capsys.readouterr().err


def test_memory_that_runs_out_has_a_remedy():
    message = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB. GPU 0 has"))
    assert message == (
        "The GPU's memory ran out: for retrieval, set a smaller --model.chunk_size; for segmentation, set a smaller "
        "--data.batch_size or --data.transforms.crop_size; for domain adaptation, set a smaller --data.batch_size. "
        "(CUDA out of memory)"
    )
    assert explain(KeyError()) == "KeyError"
