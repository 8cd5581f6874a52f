import platform
from importlib import import_module

import pytest
import torch

import lightning_recall
from lightning_recall import _lightning


def test_the_versions_are_those_of_the_imported_packages(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("--version")
    shown = capsys.readouterr().out.strip()
    lightning = f"{_lightning.PACKAGE} {import_module(_lightning.PACKAGE).__version__}"
    without_build = torch.__version__.partition("+")[0]  # such as 2.6.0 of 2.6.0+cu124
    assert stopped.value.code == 0
    assert shown.startswith(f"lightning-recall {lightning_recall.__version__} ({lightning}, torch {without_build}")
    assert shown.endswith(f", Python {platform.python_version()})")
