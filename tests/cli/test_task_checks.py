from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningModule

from lightning_recall.cli.task_checks import check_tasks, chosen_classes, chosen_links, chosen_tasks
from lightning_recall.segmentation.module import SegmentationModule


class Own(SegmentationModule):
    pass


class Plain(LightningModule):
    pass


RETRIEVAL = {"class_path": "lightning_recall.modules.RetrievalModule"}
SEGMENTATION = {"class_path": "lightning_recall.segmentation.module.SegmentationModule"}
LOSS = {"class_path": "lightning_recall.losses.RecallAtKLoss"}
RECALL = {"class_path": "lightning_recall.segmentation.losses.RecallCrossEntropyLoss"}
GLYPHS = {"class_path": "lightning_recall.datamodules.GlyphsDataModule"}
CAMVID = {"class_path": "lightning_recall.segmentation.datamodules.CamVidDataModule"}
PICTURES = {"class_path": "lightning_recall.callbacks.RetrievedImages"}


def settings(model, data, callbacks=(), **init_args):
    return Namespace(model={**model, "init_args": init_args}, data=data, trainer={"callbacks": [*callbacks]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (settings(SEGMENTATION, CAMVID, loss=LOSS), "--model.loss RecallAtKLoss is for retrieval, but Segmentation"),
        (settings(SEGMENTATION, GLYPHS, loss=RECALL), "--data GlyphsDataModule is for .*: choose CamVidDataModule, "),
        (settings(RETRIEVAL, CAMVID, loss=LOSS), "--data CamVidDataModule is for segmentation, .*GlyphsDataModule, "),
        (
            settings(RETRIEVAL, GLYPHS, loss=RECALL),
            "--model.loss RecallCrossEntropyLoss is for .*choose .*CircleLoss, ",
        ),
        (settings(SEGMENTATION, CAMVID, [PICTURES]), "--trainer.callbacks RetrievedImages is for .*: remove it."),
        (settings({"class_path": f"{__name__}.Own"}, GLYPHS), "is for retrieval, but Own is for segmentation"),
    ],
)
def test_classes_of_two_tasks_are_an_error(config, message, monkeypatch):
    monkeypatch.setattr("lightning_recall.cli.task_checks.import_object", imported)
    with pytest.raises(ValueError, match=message):
        check_tasks(config, [])


def imported(path):
    """Also the classes of this file, which pytest does not import under its name."""
    from jsonargparse._util import import_object

    return {f"{__name__}.Own": Own, f"{__name__}.Plain": Plain}.get(path) or import_object(path)


@pytest.mark.parametrize(
    "config",
    [
        settings(SEGMENTATION, CAMVID, loss=RECALL),
        settings(
            SEGMENTATION, {"class_path": "pytorch_lightning.LightningDataModule"}, loss={"class_path": "torch.nn.ReLU"}
        ),
        settings(RETRIEVAL, GLYPHS, [PICTURES], loss=LOSS),
        settings({"class_path": f"{__name__}.Plain"}, GLYPHS, [PICTURES], loss=RECALL),
    ],
)
def test_classes_of_one_task_or_of_none_are_allowed(config, monkeypatch):
    monkeypatch.setattr("lightning_recall.cli.task_checks.import_object", imported)
    check_tasks(config, ["--trainer.max_epochs", "3"])


def test_the_task_is_known_before_the_settings_are_parsed(tmp_path):
    def names(*args):
        return [task.NAME for task in chosen_tasks(args)]

    (tmp_path / "flat.yaml").write_text("model: {class_path: SegmentationModule}")
    (tmp_path / "nested.yaml").write_text("fit: {model: {class_path: lightning_recall.modules.RetrievalModule}}")
    assert names("fit", "--model", "SegmentationModule") == ["segmentation"]
    assert names("fit", "-c", str(tmp_path / "flat.yaml")) == ["segmentation"]
    assert names("fit", "-c", str(tmp_path / "nested.yaml")) == ["retrieval"]
    for method in ("DANNModule", "DMADAModule", "SourceOnlyModule"):  # classes derived from the task's module
        assert names("fit", "--model", method) == ["domain adaptation"]
    for other in ((), ("--model", "torch.nn.Linear"), ("--model", "absent.Module"), ("--model", "Absent")):
        assert names("fit", *other) == ["retrieval", "segmentation", "domain adaptation"]


@pytest.mark.parametrize(
    ("network", "is_linked"),
    [
        ("SmallUNet", True),
        ("torch.nn.Linear", True),
        ("torchvision.models.segmentation.fcn_resnet50", False),
        ("", True),
    ],
)
def test_settings_of_functions_are_not_linked(network, is_linked, tmp_path):
    target = ("model.init_args.num_classes", "model.init_args.network.init_args.num_classes")
    model = {"class_path": "SegmentationModule", "init_args": {"network": {"class_path": network}}}
    (tmp_path / "file.yaml").write_text(yaml.safe_dump({"model": model}))
    in_file, given = ("fit", "-c", str(tmp_path / "file.yaml")), ("fit", "--model", "SegmentationModule")
    for args in (
        in_file,
        (*given, "--model.network", network),
        (*given, "--model.network", f"{{class_path: {network}}}"),
    ):
        links = chosen_links(args)
        assert (target in links) == is_linked
        assert ("model.init_args.num_classes", "model.init_args.loss.init_args.num_classes") in links


def test_options_of_another_task_are_an_error():
    with pytest.raises(ValueError, match=r"--evaluation.ks is for retrieval, but SegmentationModule is for segm"):
        check_tasks(settings(SEGMENTATION, CAMVID), ["fit", "--evaluation.ks", "[1]"])
    check_tasks(settings(RETRIEVAL, GLYPHS), ["fit", "--evaluation.ks", "[1]"])


def test_classes_are_named_by_their_options():
    nested = settings(SEGMENTATION, None, [PICTURES], losses=[LOSS, {**RECALL, "init_args": {"inner": LOSS}}])
    found = list(chosen_classes({"model": nested.model, "data": nested.data, "trainer": nested.trainer}))
    assert found == [
        ("model", SEGMENTATION["class_path"]),
        ("model.losses", LOSS["class_path"]),
        ("model.losses", RECALL["class_path"]),
        ("model.losses.inner", LOSS["class_path"]),
        ("trainer.callbacks", PICTURES["class_path"]),
    ]


def test_the_command_checks_before_it_reads_data(command):
    segmentation = (
        "--seed_everything",
        0,
        "--model",
        "SegmentationModule",
        "--model.num_classes",
        3,
        "--model.network",
        "SmallUNet",
    )
    with pytest.raises(ValueError, match="--data GlyphsDataModule is for retrieval"):
        command("fit", *segmentation, "--model.loss", "torch.nn.CrossEntropyLoss", "--data", "GlyphsDataModule")
    assert not list(Path().iterdir())


def test_keys_of_mappings_may_be_numbers():
    settings = {"schedules": {0: {"class_path": "torch.nn.ReLU"}, 5: [1.0, 0.001]}}
    assert list(chosen_classes(settings, "trainer")) == [("trainer.schedules.0", "torch.nn.ReLU")]
