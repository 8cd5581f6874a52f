"""Both Lightning packages, pytorch_lightning and lightning.pytorch, give the same results."""

import csv
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lightning_recall import _lightning
from lightning_recall._lightning import (
    ENVIRONMENT_VARIABLE,
    PACKAGE,
    PACKAGES,
    PRIVATE_NAMES,
    PUBLIC_NAMES,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    Trainer,
    choose_package,
    last_checkpoints,
)

PYTORCH_LIGHTNING, LIGHTNING = PACKAGES
SCRIPT = Path(__file__).parent / "lightning_run.py"
both = pytest.mark.skipif(not all(map(_lightning.is_installed, PACKAGES)), reason="one of the packages is missing")


@pytest.mark.parametrize(
    ("imported", "installed", "variable", "expected"),
    [
        # 1. only one is imported
        ([PYTORCH_LIGHTNING], PACKAGES, None, (PYTORCH_LIGHTNING, False)),
        ([LIGHTNING], PACKAGES, None, (LIGHTNING, False)),
        ([PYTORCH_LIGHTNING], PACKAGES, LIGHTNING, (PYTORCH_LIGHTNING, False)),
        ([LIGHTNING], PACKAGES, PYTORCH_LIGHTNING, (LIGHTNING, False)),
        # 2. none is imported, and only one is installed
        ([], [PYTORCH_LIGHTNING], None, (PYTORCH_LIGHTNING, False)),
        ([], [LIGHTNING], None, (LIGHTNING, False)),
        ([], [PYTORCH_LIGHTNING], LIGHTNING, (PYTORCH_LIGHTNING, False)),
        ([], [LIGHTNING], PYTORCH_LIGHTNING, (LIGHTNING, False)),
        # 3. the variable decides; the default is announced where it decides between two that are not imported
        ([], PACKAGES, None, (PYTORCH_LIGHTNING, True)),
        ([], PACKAGES, PYTORCH_LIGHTNING, (PYTORCH_LIGHTNING, False)),
        ([], PACKAGES, LIGHTNING, (LIGHTNING, False)),
        ([], PACKAGES, "lightning", (LIGHTNING, False)),
        ([], PACKAGES, "", (PYTORCH_LIGHTNING, True)),
        (PACKAGES, PACKAGES, None, (PYTORCH_LIGHTNING, False)),
        (PACKAGES, PACKAGES, PYTORCH_LIGHTNING, (PYTORCH_LIGHTNING, False)),
        (PACKAGES, PACKAGES, LIGHTNING, (LIGHTNING, False)),
    ],
)
def test_the_package_is_chosen_by_the_rules(imported, installed, variable, expected):
    environment = {} if variable is None else {ENVIRONMENT_VARIABLE: variable}
    assert choose_package(list(imported), list(installed), environment) == expected


def test_without_lightning_the_error_says_what_to_install():
    with pytest.raises(ImportError, match="pip install pytorch-lightning"):
        choose_package([], [], {})


@pytest.mark.parametrize("imported", [[], [LIGHTNING]])
def test_an_unknown_package_is_refused(imported):
    with pytest.raises(
        ValueError, match=f"{ENVIRONMENT_VARIABLE} must be pytorch_lightning or lightning.pytorch, got 'keras'"
    ):
        choose_package(imported, list(PACKAGES), {ENVIRONMENT_VARIABLE: "keras"})


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_exists_in_both(package):
    if not _lightning.is_installed(package):
        pytest.skip(f"{package} is not installed")
    for home, names in PUBLIC_NAMES.items():
        for name in names:
            assert hasattr(import_module(package + home), name)
    for home, name in PRIVATE_NAMES.values():
        assert hasattr(import_module(package + home), name)


def test_every_name_comes_from_the_package_in_use():
    names = [name for names in PUBLIC_NAMES.values() for name in names if name != "MisconfigurationException"]
    homes = {getattr(getattr(_lightning, name), "__module__", PACKAGE) for name in names}
    ours = (PACKAGE, PACKAGE.replace("pytorch", "fabric").replace("fabric_lightning", "lightning_fabric"), "typing")
    assert all(home.startswith(ours) for home in homes - {"collections.abc", "lightning_utilities.core.rank_zero"})
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = _lightning.Nothing


def test_the_last_checkpoint_is_that_of_a_callback(tmp_path):
    quiet = {"logger": False, "accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}
    for callback, name in (
        (ModelCheckpoint(tmp_path / "a", save_last=True), "a/last.ckpt"),
        (OnExceptionCheckpoint(tmp_path / "b", "ended"), "b/ended.ckpt"),
    ):
        trainer = Trainer(**quiet, callbacks=callback, default_root_dir=tmp_path)
        assert not any(Path(path).exists() for path in last_checkpoints(trainer))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert tmp_path / name in {Path(path) for path in last_checkpoints(trainer)}


def run_together(*calls):
    """Runs functions of lightning_run.py at the same time, each in a process of its own; returns their results.

    A call is (folder, name of the function, package, other arguments).
    """
    processes = []
    for folder, name, package, *args in calls:
        command = [sys.executable, SCRIPT, name, package, *map(str, args)]
        environment = {**os.environ, ENVIRONMENT_VARIABLE: package}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    shown = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, shown, strict=True):
        assert process.returncode == 0, text
    return [json.loads((folder / f"{name}.json").read_text()) for folder, name, *_ in calls]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder in which each package runs."""
    return {package: tmp_path_factory.mktemp(package) for package in PACKAGES}


@pytest.fixture(scope="module")
def runs(folders, glyph_folder):
    """The results of the functions `python` and `command` under each package."""
    keys = [(package, name) for package in PACKAGES for name in ("python", "command")]
    results = run_together(*((folders[package], name, package, glyph_folder) for package, name in keys))
    return dict(zip(keys, results, strict=True))


@both
def test_runs_from_python_are_equal(runs):
    one, other = (runs[package, "python"] for package in PACKAGES)
    for results in (one, other):
        results["fit"].pop("images/s", None)
    assert {"val/recall@1", "train/loss"} <= set(one["fit"])
    assert {"test/recall@1", "test/pixels/recall@1", "test/untrained/recall@1"} <= set(one["test"][0])
    assert {"report.html", "training_curves.png", "retrieved_images.png", "shard-00-00000.npz"} <= set(one["files"])
    assert one == other


@both
def test_a_resumed_run_ends_like_the_whole_run(runs):
    for package in PACKAGES:
        assert runs[package, "python"]["resumed"] == runs[package, "python"]["weights"]


@both
def test_runs_of_the_command_are_equal(runs):
    one, other = (tables_without_speed(runs[package, "command"]) for package in PACKAGES)
    assert any("val/recall@1" in row and row["val/recall@1"] for row in one["fit"])
    assert any(row["test/pixels/recall@1"] for row in one["test"])
    assert one == other


def tables_without_speed(tables):
    rows = {name: list(csv.DictReader(table)) for name, table in tables.items()}
    return {name: [{**row, "images/s": None} for row in table] for name, table in rows.items()}


@both
@pytest.mark.parametrize(("package", "other"), [PACKAGES, PACKAGES[::-1]])
def test_a_checkpoint_of_the_other_package_is_loaded_and_resumed(package, other, runs, folders, glyph_folder, tmp_path):
    of_command = folders[other] / "runs/glyphs/version_0/checkpoints/best.ckpt"
    of_python = folders[other] / "whole/checkpoints/epoch=0.ckpt"
    (result,) = run_together((tmp_path, "load_and_resume", package, glyph_folder, of_command, of_python))
    assert result["package"] == package
    assert result["equal"]
    assert all(result["equal"])
    assert result["resumed"] == runs[other, "python"]["weights"]


@both
def test_a_module_of_one_package_is_refused_by_the_trainer_of_the_other(runs):
    for message in (runs[package, "python"]["refused"] for package in PACKAGES):
        assert "must be a `LightningModule`" in message
        assert "got `RetrievalModule`" in message
