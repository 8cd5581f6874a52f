"""The notebooks run without an error or a warning; stored outputs are small and contain no machine-specific paths."""

import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 600_000
PICTURES = {"image/png", "image/jpeg"}
SHORTER = {  # settings as stored, and in the test
    "quickstart": ("max_epochs=24", "max_epochs=8"),
    "own_module": ("max_epochs=40", "max_epochs=4"),
    "large_batch": ("range(50)", "range(10)"),
}
EXECUTE = runpy.run_path(str(FOLDER / "execute.py"))
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(home|root|tmp|work|usr|opt|var|mnt|Users|private)/|[A-Z]:\\")


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def complaints(notebook):
    """Outputs on stderr, and warnings in any output."""
    found = [
        output for output in outputs(notebook) if output.get("name") == "stderr" or "Warning:" in json.dumps(output)
    ]
    return [json.dumps(output)[:2000] for output in found]


def kinds(notebook):
    """The output types of each cell."""
    return [[sorted(output.get("data", ["text"])) for output in cell.get("outputs", [])] for cell in notebook.cells]


def stored(path):
    return nbformat.read(path, as_version=4)


def test_there_are_three_notebooks():
    assert [path.stem for path in PATHS] == ["large_batch", "own_module", "quickstart"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs_and_output_types_are_as_stored(path, all_glyphs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "lightning_recall").symlink_to(all_glyphs)
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    long, short = SHORTER[path.stem]
    text = path.read_text(encoding="utf-8")
    assert text.count(long) == 1
    (tmp_path / path.name).write_text(text.replace(long, short), encoding="utf-8")
    executed = EXECUTE["execute"](tmp_path / path.name, tmp_path)
    assert complaints(executed) == []
    assert kinds(executed) == kinds(stored(path)), "outputs do not match the code: run make notebooks"
    assert [cell.source.replace(short, long) for cell in executed.cells] == [cell.source for cell in stored(path).cells]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_notebooks_are_small_and_hold_no_paths(path):
    notebook = stored(path)
    nbformat.validate(notebook)
    assert path.stat().st_size <= MAX_BYTES
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1)), "cells were not run once and in order: run make notebooks"
    assert sum(bool(PICTURES & {*output.get("data", {})}) for output in outputs(notebook)) >= 2
    assert complaints(notebook) == []
    text = json.dumps(
        [{k: v for k, v in output.get("data", output).items() if k not in PICTURES} for output in outputs(notebook)]
    )
    assert not ABSOLUTE_PATH.search(text)
    assert notebook.metadata == EXECUTE["METADATA"]
    assert not any(cell.metadata for cell in notebook.cells)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_links_exist(path):
    text = "\n".join(cell.source for cell in stored(path).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert all(link.startswith("https://") or (FOLDER / link).exists() for link in links)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import sys; print('x', file=sys.stderr)", True),
        ("import warnings; warnings.warn('x')", True),
        ("print('x')", False),
    ],
)
def test_complaints_are_found(line, found, tmp_path):
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line)]), path)
    assert bool(complaints(EXECUTE["execute"](path, tmp_path))) == found
