"""The notebooks, executed from top to bottom."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST = 800_000  # bytes of a file, pictures included


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def texts(notebook):
    """What cells have printed or shown as text."""
    for output in outputs(notebook):
        yield output.get("text", "") + output.get("data", {}).get("text/plain", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the kernel's own libraries
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, glyph_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures are outputs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("cache", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cache" / "lightning_recall").symlink_to(glyph_folder)
    notebook = nbformat.read(path, as_version=4)
    shown = [len(cell.get("outputs", ())) > 0 for cell in notebook.cells]
    folder = {"metadata": {"path": str(tmp_path / "run")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    assert [len(cell.get("outputs", ())) > 0 for cell in notebook.cells] == shown
    assert not any("Warning" in text for text in texts(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_light_and_of_no_machine(path):
    assert path.stat().st_size < MOST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) + len(list(texts(notebook))) > 3
    for text in texts(notebook):
        assert not re.search(r"/(home|root|tmp|Users|usr)/|Warning|Traceback", text)
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["large_batch", "own_module", "quickstart"]
