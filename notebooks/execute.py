"""Executes notebooks and stores them with their outputs: python notebooks/execute.py notebooks/*.ipynb."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, folder: Path) -> NotebookNode:
    """Runs a notebook in a new kernel in `folder`; returns it with outputs, without machine-specific metadata.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    environment = {
        **os.environ,
        "IPYTHONDIR": str(folder / ".ipython"),  # ignores the user's IPython profile
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # reuses the font cache
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no debugger warning
        "LIGHTNING_RECALL_LIGHTNING": "pytorch_lightning",  # no message if both Lightning packages are installed
    }
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True)
    client.execute(cwd=str(folder), env=environment)
    return without_machine_metadata(notebook)


def without_machine_metadata(notebook: NotebookNode) -> NotebookNode:
    """Removes kernel version and cell metadata, and numbers the cell ids."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    return notebook


def main(paths: list[str]) -> None:
    """Executes each notebook in an empty folder, and writes it back."""
    for path in map(Path, paths):
        with TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)
        sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
