import sys
from types import ModuleType

import pytest
from jsonargparse import ArgumentParser, _typehints
from torch import nn

import lightning_recall.losses  # noqa: F401  # to be found
from lightning_recall.cli.subclasses import cached_subclass_lists


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
