from pathlib import Path

import pytest
import torch

from lightning_recall.cli import run
from lightning_recall.cli.errors import simplify
from lightning_recall.cli.user_errors import explain

GLYPHS = str(Path(__file__).parents[2] / "configs" / "glyphs.yaml")


@pytest.fixture
def console(in_tmp_path, monkeypatch, capsys):  # noqa: ARG001  # the command writes to the folder it runs in
    """Runs the console entry point; returns its exit code and what it wrote to stderr."""

    def call(*args):
        monkeypatch.setattr("sys.argv", ["lightning-recall", *args])
        with pytest.raises(SystemExit) as stopped:
            run()
        return stopped.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--model.lss", "3"), "Option 'lss' is not accepted. It takes: embedder, loss, mixup, chunk_size,"),
        (("--model.loss.delta", "3"), "'delta' is not accepted. It takes: ks, k_temperature, rank_temperature, count_"),
        (("--model.loss", "CircleLos"), "model: lightning_recall.RetrievalModule: loss: There is no class CircleLos. "),
        (("--model.loss", "CircleLos"), "Did you mean CircleLoss?"),
        (("--model.loss", "Zzz"), "There is no class Zzz. Name classes of other packages as package.module.Name."),
        (
            ("--data.batch_size", "x"),
            "data: lightning_recall.datamodules.GlyphsDataModule: batch_size: Expected int. Got value: x",
        ),
        (("--model.loss.ks", "1,2,4"), "RecallAtKLoss: ks: Write a list as [1,2,4]."),
        (
            ("--model.optimizer=null", "--model.optimizer.lr", "0.1"),
            "Choose the class first, such as --model.opti",
        ),
        (
            ("--trainer.callbacks+=LearningRateFinder",),
            "changes the learning rate without recording it in config.yaml: use LearningRateSuggestion, which prints",
        ),
        (
            ("--trainer.callbacks+=RetrievalEvaluatio",),
            "trainer.callbacks: There is no class RetrievalEvaluatio. Did you mean RetrievalEvaluation?",
        ),
        (("--ckpt_path", "best"), "--ckpt_path best is known only to the process that trained"),
        (("--ckpt_path", "~/none.pth"), "none.pth: there is no such file"),
        (("--weights", "none.pth"), "--weights none.pth: there is no such file"),
        (("--trainer.nope", "3"), "unrecognized arguments: --trainer.nope 3"),
    ],
)
def test_a_wrong_option_is_explained_in_a_line(console, option, message):
    code, shown = console("fit", "--config", GLYPHS, *option)
    assert code == 2
    *usage, tip, error = shown.strip().splitlines()
    assert message in error
    assert shown.count("It takes") <= 1
    assert error.count("There is no class") <= 1
    assert all(line.strip().removeprefix("usage: ").startswith("lightning-recall ") for line in usage)
    assert tip.startswith("tip: ")
    assert not any(word in shown for word in ("Union", "NoneType", "Namespace", "Traceback"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--model.loss.rank_temperature", "-1"), "rank_temperature must be a finite number above 0, got -1.0."),
        (("--data.samples_per_class", "7"), "batch_size must be a multiple of samples_per_class=7"),
        (("--trainer.accelerator", "tpu"), "torch_xla"),
        (("--trainer.gradient_clip_val", "1"), "--model.gradient_clip_val 1"),
        (("--ckpt_path", __file__), "is not a file that torch.save wrote: pass a checkpoint"),
    ],
)
def test_a_wrong_value_is_explained_in_a_paragraph(console, option, message, glyph_folder):
    code, shown = console("fit", "--config", GLYPHS, "--data.root", str(glyph_folder), *option)
    assert code == 1
    error, hint = shown.strip().splitlines()[-2:]
    assert error.startswith("lightning-recall: error: ")
    assert message in error
    assert hint == "(LIGHTNING_RECALL_VERBOSE=1 shows the traceback.)"
    assert not any(word in shown for word in ("Union", "NoneType", "Namespace", "Traceback"))


def test_on_request_the_traceback_is_shown(monkeypatch, in_tmp_path):  # noqa: ARG001  # the command writes to the folder it runs in
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
    assert "error: other.ckpt holds weights that do not match the network or loss in the settings. Missing" in shown
    assert len(shown.strip().splitlines()[-2]) < 900


def test_a_class_without_options_says_so_for_another_option():
    message = simplify("loss: torch.nn.Sigmoid: Option 'delta' is not accepted")
    assert message == "loss: torch.nn.Sigmoid: Option 'delta' is not accepted. It takes none."


def test_a_plain_message_stays_as_it_is():
    for message in ("The file is missing: look there.", "a: b", simplify("Option 'x' is not accepted")):
        assert simplify(message) == message


def test_no_message_is_longer_than_a_paragraph(console):
    assert len(explain(ValueError("wrong " * 9_999))) == 800
    _, shown = console("fit", "--config", GLYPHS, "--data.batch_size", "x" * 9_999)
    assert len(shown) < 1_200


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_a_broken_checkpoint_is_refused_by_all(console, subcommand):
    Path("empty.ckpt").touch()
    code, shown = console(subcommand, "--config", GLYPHS, "--ckpt_path", "empty.ckpt")
    assert code == 1
    assert "error: empty.ckpt is empty: the process that saved it was interrupted" in shown


def test_a_training_that_cannot_be_resumed_does_not_start_again(console, glyph_folder):
    data = ("--config", GLYPHS, "--data.root", str(glyph_folder))
    code, shown = console("fit", *data, "--ckpt_path", "last")
    assert code == 2
    assert "--ckpt_path last: there is no last checkpoint" in shown
    assert not Path("runs").exists()
    torch.save({}, "some.ckpt")
    code, shown = console("fit", *data, "--ckpt_path", "some.ckpt", "--weights", "some.ckpt")
    assert code == 2
    assert "Pass --ckpt_path to resume or --weights to start a new training, not both." in shown


def test_home_folders_are_found(console, in_tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(in_tmp_path))
    Path("settings.yaml").write_text(
        Path(GLYPHS)
        .read_text()
        .replace("backbone: {class_path: SmallConvNet}", "backbone: resnet18\n        pretrained: ~/w.pth")
    )
    code, shown = console("fit", "--config=~/settings.yaml")
    assert code == 1
    assert f"no such file: {in_tmp_path}/w.pth" in shown
    Path("empty.ckpt").touch()
    _, shown = console("fit", "--config=~/settings.yaml", "--ckpt_path=~/empty.ckpt")
    assert f"{in_tmp_path}/empty.ckpt is empty" in shown


@pytest.mark.parametrize(("text", "message"), [("", "A line of the settings file is not of the form"), ("- 1", "- 1")])
def test_a_file_without_settings_is_refused(console, text, message):
    Path("settings.yaml").write_text(text)
    code, shown = console("fit", "--config", "settings.yaml")
    assert code == 2
    assert message in shown
