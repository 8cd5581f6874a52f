import os

import numpy as np
import pytest
import torch

# matplotlib would look for a screen, and Lightning for other machines.
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # hypothesis and old libraries still draw from it


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """Runs the test in an empty folder, where whatever it writes belongs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(in_tmp_path, monkeypatch):  # noqa: ARG001  # the command writes to the folder it runs in
    """`lightning-recall` in process, in an empty folder."""
    from lightning_recall.cli import main

    monkeypatch.setattr("sys.argv", ["lightning-recall"])  # else Lightning takes pytest's arguments for its own
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *args: main([str(arg) for arg in args])


@pytest.fixture(scope="session")
def glyph_folder(tmp_path_factory):
    """The glyphs, drawn once for all tests."""
    from lightning_recall.datamodules import GlyphsDataModule

    folder = tmp_path_factory.mktemp("glyphs")
    GlyphsDataModule(root=str(folder)).prepare_data()
    return folder
