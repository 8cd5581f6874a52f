import importlib
import subprocess
import sys

import pytest

from lightning_recall.cli import main, run
from lightning_recall.cli.tools import TOOLS, Tool, tool_of, tool_parser


@pytest.fixture
def echo(monkeypatch, tmp_path):
    """A command that prints its argument, or raises it."""
    (tmp_path / "echo_command.py").write_text(
        "def add_arguments(parser):\n    parser.add_argument('text')\n\n\n"
        "def run(arguments):\n    if arguments.text == 'bad':\n        raise ValueError('bad is not a text.')\n"
        "    print(arguments.text)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(TOOLS, "echo", Tool("echo_command", "Prints a text."))


@pytest.mark.usefixtures("echo")
def test_a_command_gets_its_arguments(capsys, monkeypatch):
    main(["echo", "hello"])
    monkeypatch.setattr("sys.argv", ["lightning-recall", "echo", "again"])
    run()
    assert capsys.readouterr().out == "hello\nagain\n"


@pytest.mark.usefixtures("echo")
def test_a_user_error_is_one_paragraph(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lightning-recall", "echo", "bad"])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("lightning-recall: error: bad is not a text.\n")
    monkeypatch.setenv("LIGHTNING_RECALL_VERBOSE", "1")
    with pytest.raises(ValueError, match="bad is not a text"):
        run()


@pytest.mark.usefixtures("echo")
def test_the_overview_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Prints a text." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["ehco"])
    assert "echo" in capsys.readouterr().err


def test_only_a_command_in_front_counts():
    name = next(iter(TOOLS), None)
    assert tool_of([]) is tool_of(["fit", str(name)]) is tool_of(["--help"]) is None
    assert name is None or tool_of([name, "--help"]) == name


@pytest.mark.parametrize("name", TOOLS)
def test_each_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool_parser(name).parse_args(["--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert TOOLS[name].summary in shown
    assert "(default: None)" not in shown
    assert "(default: False)" not in shown
    assert callable(importlib.import_module(TOOLS[name].module).run)


@pytest.mark.usefixtures("echo")
def test_defaults_are_shown_once_and_only_if_there_are_any():
    parser = tool_parser("echo")
    parser.add_argument("--none", help="without.")
    parser.add_argument("--flag", action="store_true", help="a flag.")
    parser.add_argument("--named", default="x", help="named (default: a folder).")
    parser.add_argument("--seed", type=int, default=0, help="a number")
    parser.add_argument("--ks", nargs="+", default=[1, 2], help="numbers")
    shown = " ".join(parser.format_help().split())
    assert shown.count("(default:") == 3
    assert "named (default: a folder)." in shown
    assert "a number (default: 0)" in shown
    assert "numbers (default: 1 2)" in shown


def test_the_help_of_commands_needs_no_torch():
    code = (
        "import sys; from lightning_recall.cli.tools import TOOLS, tool_parser\n"
        "for name in TOOLS: tool_parser(name).format_help()\n"
        "assert not {'torch', 'pytorch_lightning', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
