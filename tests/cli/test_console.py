import subprocess
import sys
import warnings

import pytest

from lightning_recall.cli import run


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken():
        raise RuntimeError("a defect")

    monkeypatch.setattr("sys.argv", ["lightning-recall", "fit"])
    monkeypatch.setattr("lightning_recall.cli.command.execute", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run()


def test_warnings_are_shown_in_a_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # `run` sets it for its process
    monkeypatch.setattr("sys.argv", ["lightning-recall", "fit"])
    monkeypatch.setattr("lightning_recall.cli.command.execute", lambda: None)
    run()
    assert warnings.formatwarning("look here", UserWarning, "file.py", 3) == "Warning: look here\n"


COLLECTIONS_IN_THE_COMMAND = """
import gc, sys
collections = []
from lightning_recall.cli import console
gc.callbacks.append(lambda *_: collections.append(1))
console.import_without_collections()
assert "lightning_recall.modules.retrieval" in sys.modules and "lightning_recall.cli.command" in sys.modules
assert not collections, len(collections)
assert gc.isenabled()
print(gc.get_freeze_count())
console.import_without_collections()
print(gc.get_freeze_count())
"""


def test_the_imports_are_never_searched_for_garbage():
    shown = subprocess.run(
        [sys.executable, "-c", COLLECTIONS_IN_THE_COMMAND], capture_output=True, text=True, check=True
    ).stdout
    first, second = map(int, shown.split())
    assert second <= first  # later garbage is not ignored
    assert first > 100_000
