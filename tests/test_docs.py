"""The documentation: its snippets run, its commands are parsed, its site is built."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference")
COMMANDS = sorted({line for page in PAGES for line in re.findall(r"^lightning-recall .*$", page.read_text(), re.M)})
PUBLIC = ("losses", "models", "modules", "datamodules", "samplers", "metrics", "callbacks")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page):
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(snippet, names)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line, command, in_tmp_path, capsys):
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    if "pytorch_metric_learning" in line:
        pytest.importorskip("pytorch_metric_learning")
    checkpoint = in_tmp_path / "runs/glyphs/version_0/checkpoints/best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    subcommand, *options = shlex.split(line)[1:]
    with pytest.raises(SystemExit) as stopped:
        command(subcommand, *options, "--print_config")
    assert stopped.value.code == 0, capsys.readouterr().err


def test_the_site_is_built_and_holds_every_public_name(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    for room in PUBLIC:
        page = (tmp_path / "reference" / f"{room}.html").read_text()
        for name in importlib.import_module(f"lightning_recall.{room}").__all__:
            assert f'id="lightning_recall.{room}.{name}"' in page, f"{room}.{name} is not in the reference"
    losses = (tmp_path / "reference" / "losses.html").read_text()
    assert "&gt;&gt;&gt;" in losses  # examples, as code
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert not any(re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', page) for page in pages)  # no network


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
