import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_recall.cli import run
from lightning_recall.cli.errors import paragraph, plain

GLYPHS = str(Path(__file__).parents[2] / "configs" / "glyphs.yaml")


@pytest.fixture
def console(in_tmp_path, monkeypatch, capsys):  # noqa: ARG001  # the command writes to the folder it runs in
    """The console's command; gives its exit code, and what it wrote to stderr."""

    def call(*args):
        monkeypatch.setattr("sys.argv", ["lightning-recall", *args])
        with pytest.raises(SystemExit) as stopped:
            run()
        return stopped.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--model.lss", "3"), "Option 'lss' is not accepted. It takes: embedder, loss, mixup, chunk_size,"),
        (("--model.loss.delta", "3"), "'delta' is not accepted. It takes: ks, k_temperature, rank_temperature, count_"),
        (("--model.loss", "CircleLos"), "model: lightning_recall.RetrievalModule: loss: There is no class CircleLos. "),
        (("--model.loss", "CircleLos"), "Did you mean CircleLoss?"),
        (("--model.loss", "Zzz"), "There is no class Zzz. Classes of other packages are given as package.module.Name."),
        (("--data.batch_size", "x"), "data: lightning_recall.datamodules.GlyphsDataModule: batch_size: Expected a "),
        (("--trainer.nope", "3"), "unrecognized arguments: --trainer.nope 3"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(console, option, told):
    code, shown = console("fit", "--config", GLYPHS, *option)
    assert code == 2
    *usage, error = shown.strip().splitlines()
    assert told in error
    assert shown.count("It takes") <= 1
    assert len(usage) == 2
    assert not any(word in shown for word in ("Union", "NoneType", "Namespace", "Traceback"))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--model.loss.rank_temperature", "-1"), "Temperatures must be above 0, got k_temperature=1.0, rank_temper"),
        (("--data.samples_per_class", "7"), "batch_size must be a multiple of samples_per_class=7"),
        (("--trainer.accelerator", "tpu"), "torch_xla"),
    ],
)
def test_a_wrong_value_is_told_in_a_paragraph(console, option, told, glyph_folder):
    code, shown = console("fit", "--config", GLYPHS, "--data.root", str(glyph_folder), *option)
    assert code == 1
    error, hint = shown.strip().splitlines()[-2:]
    assert error.startswith("lightning-recall: error: ")
    assert told in error
    assert hint == "(LIGHTNING_RECALL_VERBOSE=1 shows where it happened.)"
    assert not any(word in shown for word in ("Union", "NoneType", "Namespace", "Traceback"))


def test_on_request_it_shows_where_it_happened(monkeypatch, in_tmp_path):  # noqa: ARG001
    monkeypatch.setenv("LIGHTNING_RECALL_VERBOSE", "1")
    monkeypatch.setattr("sys.argv", ["lightning-recall", "fit", "--config", GLYPHS, "--model.chunk_size", "0"])
    with pytest.raises(ValueError, match="chunk_size must be"):
        run()


def test_the_checkpoint_of_another_network_is_named_as_such(console, glyph_folder):
    torch.save({"state_dict": {"embedder.a": torch.ones(2)}, "pytorch-lightning_version": "2.6.0"}, "other.ckpt")
    code, shown = console(
        *("test", "--config", GLYPHS, "--data.root", str(glyph_folder), "--ckpt_path", "other.ckpt"),
        *("--trainer.callbacks", "null", "--trainer.logger", "false"),
    )
    assert code == 1
    assert "error: other.ckpt holds the weights of another network or loss than the settings describe. Missing" in shown
    assert len(shown.strip().splitlines()[-2]) < 900


def test_an_error_of_nobodys_making_keeps_its_traceback(monkeypatch):
    def broken():
        raise RuntimeError("a defect")

    monkeypatch.setattr("sys.argv", ["lightning-recall"])
    monkeypatch.setattr("lightning_recall.cli.command.main", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run()


def test_memory_that_runs_out_has_a_remedy():
    told = paragraph(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB. GPU 0 has"))
    assert told == "The GPU's memory ran out: take a smaller --model.chunk_size. (CUDA out of memory)"
    assert paragraph(KeyError()) == "KeyError"


def test_a_plain_message_stays_as_it_is():
    for message in ("The file is missing: look there.", "a: b", plain("Option 'x' is not accepted")):
        assert plain(message) == message


def test_help_names_the_subcommands_whole():
    shown = subprocess.run(
        [sys.executable, "-m", "lightning_recall", "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = " ".join(shown.split())
    assert "predict Write the embeddings of the test images." in text
    assert "fit Train a model, and validate it on classes set aside from training." in text
    assert "\n  lightning-recall fit --config configs/glyphs.yaml\n" in shown
