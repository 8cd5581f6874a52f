import importlib.metadata
import subprocess
import sys

import pytest

import lightning_recall


@pytest.mark.parametrize("name", lightning_recall.__all__)
def test_public_names_are_there(name):
    assert getattr(lightning_recall, name).__name__ == name
    assert name in dir(lightning_recall)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'RecallLoss'"):
        _ = lightning_recall.RecallLoss


def test_version_is_told_once():
    assert importlib.metadata.version("lightning-recall") == lightning_recall.__version__


@pytest.mark.parametrize("leaf", ["gather", "losses", "metrics", "mixup", "models", "recompute", "samplers"])
def test_leaves_do_without_lightning(leaf):
    code = f"import sys, lightning_recall.{leaf}; print('pytorch_lightning' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_compromised_releases_of_lightning_are_excluded():
    requirements = [r.replace(" ", "") for r in importlib.metadata.requires("lightning-recall")]
    (lightning,) = [r for r in requirements if r.startswith("pytorch-lightning")]
    assert "!=2.6.2" in lightning
    assert "!=2.6.3" in lightning
