import subprocess
import sys
from pathlib import Path

import pytest

from lightning_recall.cli.command import execute
from lightning_recall.cli.early_answers import answer_early

GLYPHS = Path(__file__).parents[2] / "configs" / "glyphs.yaml"
ANSWERS = [
    ([], 2),
    (["--help"], 0),
    (["-h"], 0),
    (["--version"], 0),
    (["fitt"], 2),
    (["fitt", "--help"], 2),
    (["fit", "--config", "none.yaml"], 2),
    (["test", "-c", "none.yaml", "--data.root", "nowhere"], 2),
    (["predict", "--config=none/none.yaml"], 2),
    (["validate", "--config", str(GLYPHS), "-c", "none.yaml"], 2),
    (["--config", "none.yaml", "fit"], 2),
]


def answer(call, args, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(args)
    return stopped.value.code, capsys.readouterr()


@pytest.mark.parametrize(("args", "code"), ANSWERS, ids=str)
@pytest.mark.usefixtures("in_tmp_path")
def test_the_answers_are_those_of_a_run(args, code, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lightning-recall"])  # otherwise Lightning parses pytest's arguments
    early = answer(answer_early, args, capsys)
    assert early[0] == code
    assert early == answer(execute, args, capsys)


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "--help"],
        ["fit", "--config", str(GLYPHS)],
        ["fit", "--help", "--config", "none.yaml"],
        ["fit", "--config", "none.yaml", "--model.help"],
        ["fit", "--config", "trainer: {max_epochs: 3}"],
        ["fit", "--config", "s3://bucket/file.yaml"],
        ["fit", "--config", "~/settings.yaml"],
        ["fit", "--config"],
        ["--config", str(GLYPHS), "fit"],
        ["--seed_everything", "1"],
    ],
    ids=" ".join,
)
def test_a_run_answers_the_rest(args, in_tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(in_tmp_path))
    Path("settings.yaml").touch()
    answer_early(args)


@pytest.mark.usefixtures("in_tmp_path")
def test_no_early_answer_imports_torch():
    code = """
import sys
from lightning_recall.cli import run
sys.argv = ["lightning-recall", *sys.argv[1:]]
try:
    run()
except SystemExit as stopped:
    print(stopped.code, *{"torch", "pytorch_lightning", "lightning", "timm", "torchvision", "numpy"} & {*sys.modules})
"""
    for args, exit_code in ANSWERS:
        shown = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True).stdout
        assert shown.splitlines()[-1] == str(exit_code), args


@pytest.mark.parametrize(("args", "name"), [(["fitt"], ""), (["fit", "--config", "none.yaml"], "fit ")])
def test_an_error_tells_which_help_to_read(args, name, capsys):
    _, shown = answer(answer_early, args, capsys)
    *_, tip, _ = shown.err.splitlines()
    assert tip == f"tip: For details of accepted options run: lightning-recall {name}--help"


def test_help_describes_the_subcommands_in_full():
    shown = subprocess.run(
        [sys.executable, "-m", "lightning_recall", "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = " ".join(shown.split())
    assert "predict Retrieval: Write the embeddings of the test images. Segmentation: Write the pred" in text
    assert "fit Retrieval: Train a model, and validate it on held-out classes." in text
    assert "\n  lightning-recall fit --config configs/glyphs.yaml\n" in shown
