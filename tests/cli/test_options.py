from pathlib import Path

import pytest
from torch import nn

from lightning_recall import RetrievalModule
from lightning_recall.cli.command import Parser
from lightning_recall.cli.options import (
    CommandLine,
    choices,
    help_actions,
    importable,
    known_options,
    merge,
    read_yaml,
)
from lightning_recall.cli.subclasses import cached_subclass_lists
from lightning_recall.cli.task_options import import_classes, task_options
from lightning_recall.losses import CircleLoss

GLYPHS = str(Path(__file__).parents[2] / "configs" / "glyphs.yaml")


@pytest.fixture
def parser():
    import_classes()
    parser = Parser()
    parser.add_argument("--model", type=nn.Module)
    with cached_subclass_lists():  # as in the command
        yield parser


def test_a_command_line_is_read_without_checking_values():
    line = CommandLine(["fit", "--a.b=1", "--a.c", "2", "--flag", "--a.d+", "x", "--a.b", "3", "-c", GLYPHS])
    assert line.options == {"a.b": "3", "a.c": "2", "flag": "", "a.d": "x", "c": GLYPHS}
    assert line.settings["data"]["class_path"] == "GlyphsDataModule"


def test_another_class_replaces_the_settings_of_a_class():
    settings = {"loss": {"class_path": "A", "init_args": {"x": 1}}, "ks": [1]}
    merge(settings, {"loss": {"init_args": {"y": 2}}, "ks": [2]})
    merge(settings, {"loss": {"class_path": "A", "init_args": {"z": 3}}})
    assert settings == {"loss": {"class_path": "A", "init_args": {"x": 1, "y": 2, "z": 3}}, "ks": [2]}
    merge(settings, {"loss": {"class_path": "B"}})
    assert settings["loss"] == {"class_path": "B"}


@pytest.mark.parametrize("content", [b"a: [", b"text", b"", b"\xff\xfe\x00"])
def test_files_without_settings_are_left_to_the_parser(content, tmp_path):
    (tmp_path / "some.yaml").write_bytes(content)
    assert read_yaml(str(tmp_path / "some.yaml")) == read_yaml(str(tmp_path / "none.yaml")) == {}


def test_options_of_chosen_classes_are_known(parser):
    args = ["--model", "RetrievalModule", "--model.loss", "CircleLoss", "--model.optimizer", "torch.optim.SGD"]
    known = set(known_options(parser, CommandLine(args), {}))
    assert {"model", "model.help", "model.loss", "model.loss.gamma", "model.optimizer.weight_decay"} <= known
    assert "model.loss.rank_temperature" not in known
    settings = {"model": {"class_path": "RetrievalModule", "init_args": {"loss": {"class_path": "RecallAtKLoss"}}}}
    assert "model.loss.rank_temperature" in set(known_options(parser, CommandLine([]), settings))
    assert "model.loss" not in set(known_options(parser, CommandLine([]), {"model": {"class_path": "Unknown"}}))


@pytest.mark.parametrize("name", [name for task in task_options() for name in task.CHOICES])
def test_each_pattern_of_choices_matches_a_class(name, parser):
    parser.add_argument(f"--some.{name}", type=nn.Module)
    found = choices(help_actions(parser)[-1])
    if name == "data":
        assert not found  # data modules are no torch.nn.Module
        return
    assert found
    package = "torchvision.transforms.v2" if name.endswith("_transform") else "lightning_recall"
    assert all(cls.__module__.startswith(f"{package}.") for cls in found)
    assert (CircleLoss in found) == (name == "loss")
    assert (RetrievalModule in found) == (name == "model")


def test_classes_that_cannot_be_imported_are_not_choices():
    assert list(importable(["torch.nn.Linear", "torch.nn.Absent", "absent.Module"])) == [nn.Linear]
