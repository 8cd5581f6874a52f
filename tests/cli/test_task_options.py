import os
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import Namespace

from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.callbacks import InterruptCheckpoint, RunSummary
from lightning_recall.cli import task_options as task_options_module
from lightning_recall.cli.help import parser_descriptions
from lightning_recall.cli.task_options import (
    TASK_MODULES,
    TaskOptions,
    default_callbacks,
    disable_pretrained,
    expand_model_files,
    import_classes,
    public_names,
    restore_none,
    task_options,
    tasks_of,
)
from lightning_recall.cli.user_errors import explain
from lightning_recall.modules import RetrievalModule
from lightning_recall.segmentation.module import SegmentationModule

GLYPHS = Path(__file__).parents[2] / "configs" / "glyphs.yaml"
NAMES = {*TaskOptions.__annotations__, "disable_pretrained", "disable_baselines", "evaluates_initial_weights"}


@pytest.mark.parametrize("name", TASK_MODULES)
def test_each_module_declares_every_name_and_no_other(name):
    declared = {key for key, value in vars(import_module(name)).items() if key.isupper()}
    assert declared == set(TaskOptions.__annotations__)
    assert all(callable(getattr(import_module(name), key)) for key in NAMES - declared)


def test_null_in_an_option_is_none():
    inner = Namespace(encoder_weights="None", name="x", depth=None)
    restore_none(Namespace(init_args=Namespace(network=Namespace(init_args=inner))))
    assert inner == Namespace(encoder_weights=None, name="x", depth=None)


def test_a_module_belongs_to_its_task():
    class Own(SegmentationModule):
        pass

    assert [task.NAME for task in tasks_of(Own)] == ["segmentation"]
    assert [task.NAME for task in tasks_of(RetrievalModule)] == ["retrieval"]
    assert [task.NAME for task in tasks_of(DANNModule)] == ["domain adaptation"]
    assert [task.NAME for task in tasks_of(torch.nn.Linear)] == ["retrieval", "segmentation", "domain adaptation"]
    assert tasks_of(None) == task_options()


def test_names_of_all_modules_are_known_after_import():
    import_classes()
    names = {"RetrievalModule", "CircleLoss", "GlyphsDataModule", "ImageEmbedder", "RunSummary"}
    names |= {"RecallCrossEntropyLoss", "CamVidDataModule", "SmallUNet", "SegmentedImages"}
    names |= {"BackboneEncoder", "PredictionWriter"}
    assert {*names, "ManualOptimization", "ClassBalancedBatchSampler"} <= set(public_names())


@pytest.fixture
def two_tasks(monkeypatch):
    """A second task that shares a callback and a remedy with the first."""
    first, *_ = task_options()
    second = SimpleNamespace(**{**{name: getattr(first, name) for name in NAMES}, "OVERVIEW": "Segments images."})
    second.NAME, second.MEMORY_REMEDY = "masks", "use smaller images"
    second.SUBCOMMANDS = dict.fromkeys(first.SUBCOMMANDS, "Write masks.")
    second.MODEL_FILES = ("weights",)
    monkeypatch.setitem(sys.modules, "second", second)
    monkeypatch.setattr(task_options_module, "TASK_MODULES", (TASK_MODULES[0], "second"))


@pytest.mark.usefixtures("two_tasks")
def test_two_tasks_share_the_command():
    assert [type(callback) for callback in default_callbacks()] == [RunSummary, InterruptCheckpoint]
    shown = parser_descriptions()
    assert shown["description"].endswith("\n\nSegments images.")
    sentences = "Retrieval: Write the embeddings of the test images.\nMasks: Write masks."
    assert sentences in shown["predict"]["description"]
    remedies = "for retrieval, set a smaller --model.chunk_size; for masks, use smaller images"
    assert explain(torch.OutOfMemoryError("x")) == f"The GPU's memory ran out: {remedies}. (x)"


@pytest.mark.usefixtures("two_tasks")
def test_two_tasks_may_declare_the_same_link(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("fit", "--config", GLYPHS, "--model.chunk_size", 7, "--print_config")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.count("chunk_size: 7") == 1


@pytest.mark.usefixtures("two_tasks")
def test_home_folders_of_every_task_are_expanded():
    settings = Namespace(weights="~/b", embedder=Namespace(init_args=Namespace(pretrained="~/a")))
    model = Namespace(init_args=settings)
    expand_model_files(model)
    assert (settings.weights, settings.embedder.init_args.pretrained) == tuple(map(os.path.expanduser, ("~/b", "~/a")))


@pytest.mark.parametrize("embedder", [None, "mine.Net", Namespace(init_args=Namespace(pretrained=True))])
def test_settings_that_are_not_paths_stay(embedder):
    model = Namespace(init_args=Namespace(embedder=embedder))
    before = model.clone()
    expand_model_files(model)
    assert model == before


@pytest.mark.parametrize("kind", [Namespace, dict])
def test_settings_of_wrapped_classes_are_found(kind):
    def settings(**init_args):
        return kind(class_path="a.B", init_args=kind(**init_args))

    backbone = settings(pretrained="~/c", backbone="x", freeze_batch_norm=None)
    inner, other = settings(pretrained="~/a", backbone="x", freeze_batch_norm=None), settings(pretrained=True)
    model = settings(embedder=settings(embedder=settings(embedder=inner), backbone=backbone), losses=[other], width=3)
    expand_model_files(model)
    home = os.path.expanduser("~")
    values = [inner, backbone, other]
    assert [each["init_args"]["pretrained"] for each in values] == [f"{home}/a", f"{home}/c", True]
    disable_pretrained(model)
    assert [each["init_args"]["pretrained"] for each in values] == [False, False, False]
    assert inner["init_args"]["freeze_batch_norm"] is True  # as if the weights were loaded
    assert "freeze_batch_norm" not in other["init_args"]
    disable_pretrained(None)  # no model is set
