import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from jsonargparse import ArgumentParser, _typehints
from torch import nn

import lightning_recall.losses  # noqa: F401  # to be found
from lightning_recall.cli.subclasses import cached_subclass_lists

GLYPHS = Path(__file__).parents[2] / "configs" / "glyphs.yaml"


def test_subclasses_are_cached_subclass_lists_until_a_module_is_imported(monkeypatch):
    calls = []
    monkeypatch.setattr(_typehints, "get_all_subclass_paths", lambda cls, **_: calls.append(cls) or ["a.B"])
    with cached_subclass_lists():
        for cls in (nn.Module, nn.Module, nn.Linear, nn.Module):
            _typehints.get_all_subclass_paths(cls, include_abstract=False).append("not kept")
        assert calls == [nn.Module, nn.Linear]
        monkeypatch.setitem(sys.modules, "defines_more", ModuleType("defines_more"))
        assert _typehints.get_all_subclass_paths(nn.Module, include_abstract=False) == ["a.B"]
        assert calls == [nn.Module, nn.Linear, nn.Module]
    _typehints.get_all_subclass_paths(nn.Module)
    assert len(calls) == 4


def test_short_names_are_found_and_wrong_ones_refused():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nn.Module)
    with cached_subclass_lists():
        found = [parser.parse_args(["--loss", name]).loss.class_path for name in ("UniLoss", "UniLoss", "SupAPLoss")]
        assert found == [f"lightning_recall.losses.{name}" for name in ("UniLoss", "UniLoss", "SupAPLoss")]
        with pytest.raises(Exception, match="NoLoss"):
            parser.parse_args(["--loss", "NoLoss"])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("CircleLoss", "lightning_recall.losses.CircleLoss"),
        ("TripletMarginLoss", "torch.nn.TripletMarginLoss"),
        ("AngularLoss", "pytorch_metric_learning.losses.AngularLoss"),  # nobody else has one
        ("RandomHorizontalFlip", "torchvision.transforms.v2.RandomHorizontalFlip"),
    ],
)
def test_short_names_mean_the_same_class_once_other_packages_are_imported(name, path):
    pytest.importorskip("pytorch_metric_learning.losses")  # a test tool
    import_module("torchvision.transforms.v2")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--module", type=nn.Module)
    with cached_subclass_lists():
        assert parser.parse_args(["--module", name]).module.class_path == path
        other = "pytorch_metric_learning.losses.CircleLoss"
        assert parser.parse_args(["--module", other]).module.class_path == other


def test_the_command_takes_short_names_beside_losses_of_another_package(command, capsys):
    pytest.importorskip("pytorch_metric_learning.losses")  # a test tool
    with pytest.raises(SystemExit) as stopped:
        command("fit", "--config", GLYPHS, "--model.loss", "ProxyAnchorLoss")
    assert stopped.value.code == 2
    assert "Required: --model.loss.num_classes, --model.loss.embedding_dim." in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        command("fit", "--config", GLYPHS, "--model.loss.help", "CircleLoss")
    assert stopped.value.code == 0
    assert "--model.loss.gamma" in capsys.readouterr().out
