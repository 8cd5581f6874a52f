import csv
from pathlib import Path

import numpy as np
import pytest
import segmentation_data
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image

from lightning_recall.cli import main, run
from lightning_recall.cli.errors import simplify
from lightning_recall.segmentation.command import disable_baselines, disable_pretrained, evaluates_initial_weights
from lightning_recall.segmentation.module import SegmentationModule

FOLDER = Path(__file__).parents[2] / "configs" / "segmentation"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
SCENES = ("--config", FOLDER / "scenes.yaml", "--data.num_images", 20, "--data.eval_batch_size", 4)
SMALL = (
    "--model.network.channels",
    4,
    "--trainer.check_val_every_n_epoch",
    1,
    "--trainer.enable_progress_bar",
    "false",
)
PLAIN = ("--seed_everything", 0, "--model", "SegmentationModule", "--data", "CamVidDataModule", "--data.batch_size", 2)
DEVELOPMENT = ("--trainer.fast_dev_run", 1, "--trainer.accelerator", "cpu")
DATA = {
    "camvid": segmentation_data.draw_camvid,
    "your_masks": segmentation_data.draw_mask_folder,
    "synthia_recall": segmentation_data.draw_synthia_sequence,
    "cityscapes_recall": segmentation_data.draw_cityscapes,
    "cityscapes_ssl": segmentation_data.draw_cityscapes,
    "voc_ssl": segmentation_data.draw_voc,
}
SMALL_NETWORKS = {
    "camvid": ("--model.network.pretrained", "false"),
    "your_masks": ("--model.network.pretrained", "false", "--model.num_classes", 3, "--data.transforms.crop_size", 32),
    "synthia_recall": ("--data.transforms.resize", 32),
    "cityscapes_recall": ("--data.transforms.resize", 32, "--data.transforms.crop_size", 32),
    "cityscapes_ssl": ("--data.transforms.resize", 32, "--data.transforms.crop_size", 32),
    "voc_ssl": ("--data.transforms.crop_size", 32),
}
PLAIN_RESNET = """
model:
  init_args:
    network:
      class_path: torchvision.models.segmentation.deeplabv3_resnet101
      init_args: {weights_backbone: null, num_classes: 21}
"""
RESNET = ("--model.network.encoder_name", "resnet18", "--model.network.encoder_weights", "null")
pytestmark = pytest.mark.usefixtures("quick_parsing")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a trained run of scenes.yaml, small."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lightning-recall"])
        patch.chdir(folder)
        main([str(arg) for arg in ("fit", *SCENES, *SMALL, "--trainer.max_epochs", 2)])
    return folder / "runs/scenes/version_0"


def test_fit_leaves_scores_settings_and_checkpoints(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "metrics.csv", "class_scores_val.csv", "training_curves.png", "checkpoints"} <= names
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_test_scores_the_checkpoint_and_draws_pictures(trained, command, capsys):
    command("test", *SCENES, *SMALL, "--ckpt_path", trained / "checkpoints/best.ckpt")
    shown = capsys.readouterr().out
    folder = Path("runs/scenes/version_0")
    assert {path.name for path in folder.glob("*.png")} == {"segmented_images.png", "segmented_images_worst.png"}
    assert all(name in shown for name in ("Classes of the test split", "person", "segmented_images_worst.png"))
    with (folder / "class_scores_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows][-1] == "mean over classes"
    assert len(rows) == 10


def test_predict_writes_masks(trained, command):
    command("predict", *SCENES, *SMALL, "--ckpt_path", trained / "checkpoints/best.ckpt")
    masks = sorted(Path("runs/scenes/version_0/masks").iterdir())
    assert [path.name for path in masks] == [f"{number}.png" for number in range(6)]
    assert np.array(Image.open(masks[0])).shape == (64, 96)


def test_training_resumes_and_the_checkpoint_loads_in_python(trained, command):
    last = trained / "checkpoints/last.ckpt"
    more = ("--trainer.max_epochs", 3, "--model.lr_scheduler", "null")
    with pytest.raises(ValueError, match="scheduler is WarmupCosineLR, but now none"):
        command("fit", *SCENES, *SMALL, *more, "--ckpt_path", last)
    module = SegmentationModule.load_from_checkpoint(last)
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert (module.loss.num_classes, module.network.num_classes, module.loss.ignore_index) == (9, 9, 255)


@pytest.mark.filterwarnings("ignore:ModelCheckpoint monitors")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains(config, command, tmp_path):
    if config.stem not in DATA:
        command("fit", "--config", config, "--data.num_images", 20, *DEVELOPMENT)
        return
    DATA[config.stem](tmp_path / "data")
    network = RESNET if "DeepLabV3Plus" in config.read_text() else ()
    if "torchvision" in config.read_text():
        (tmp_path / "network.yaml").write_text(PLAIN_RESNET)
        network = ("--config", tmp_path / "network.yaml")
    small = ("--data.batch_size", 2, "--data.eval_batch_size", 1, "--data.num_workers", 0)
    command(
        "fit", "--config", config, "--data.root", tmp_path / "data", *network, *small, *SMALL_NETWORKS[config.stem],
        *DEVELOPMENT,
    )  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_short(config):
    assert len(config.read_text().splitlines()) <= 40


UNET = ("segmentation_models_pytorch.Unet", "--model.network.encoder_name", "tu-mobilenetv3_small_050")
UNET += ("--model.network.encoder_weights", "null")
DICE = ("segmentation_models_pytorch.losses.DiceLoss", "--model.loss.mode", "multiclass")
LRASPP = {  # the settings of functions are not linked, and null is only possible in a file
    "class_path": "torchvision.models.segmentation.lraspp_mobilenet_v3_large",
    "init_args": {"weights_backbone": None, "num_classes": 11},
}


@pytest.mark.parametrize(
    ("network", "loss"),
    [
        (UNET, DICE),
        ((yaml.safe_dump(LRASPP, default_flow_style=True, width=1000).strip(),), ("torch.nn.CrossEntropyLoss",)),
        (("SmallUNet",), ("RecallCrossEntropyLoss", "--model.loss.momentum", 0.5)),
    ],
)
def test_networks_and_losses_of_other_packages_need_no_more_settings(network, loss, command, tmp_path):
    """The number of classes and the ignored label are set once."""
    segmentation_data.draw_camvid(tmp_path / "data")
    settings = ("--data.root", tmp_path / "data", "--data.transforms.crop_size", 32, "--data.transforms.resize", 32)
    model = ("--model.num_classes", 11, "--model.network", *network, "--model.loss", *loss)
    command("fit", *PLAIN, *settings, *model, *DEVELOPMENT)


@pytest.fixture
def error(in_tmp_path, monkeypatch, capsys):  # noqa: ARG001  # the command runs in it
    """The message with which the command ends."""

    def call(*args):
        monkeypatch.setattr("sys.argv", ["lightning-recall", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            run()
        assert stopped.value.code in (1, 2)
        return " ".join(capsys.readouterr().err.split())

    return call


CAMVID = ("fit", "--config", FOLDER / "camvid.yaml", "--model.network.pretrained", "false")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*CAMVID, "--data.root", "absent"), "absent"),
        ((*CAMVID, "--data.rot", "absent"), "Did you mean --data.root?"),
        ((*CAMVID, "--model.loss", "RecallAtKLoss"), "--model.loss RecallAtKLoss is for retrieval, but Segmentation"),
        ((*CAMVID, "--model.loss", "RecallCrossEntropyLos"), "Did you mean RecallCrossEntropyLoss?"),
        (("fit", *SCENES, "--model.num_classes", 8), "num_classes of the data module (ScenesDataModule) is 9, but"),
        (("fit", *SCENES, "--evaluation.ks", "[1]"), "--evaluation.ks is for retrieval"),
    ],
)  # fmt: skip
def test_errors_are_one_paragraph(args, message, error):
    found = error(*args)
    assert message in found
    assert "Traceback" not in found


def test_a_missing_extra_says_how_to_install_it():
    needed = 'segmentation_models_pytorch is not installed: pip install "lightning-recall[segmentation]"'
    assert simplify("No module named 'segmentation_models_pytorch.losses'") == needed
    assert simplify("No module named 'other'") == "No module named 'other'"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pretrained": "weights.pth", "channels": 3}, {"pretrained": False, "channels": 3}),
        ({"encoder_weights": "imagenet"}, {"encoder_weights": None}),
        (
            {"weights": "DEFAULT", "weights_backbone": "DEFAULT", "aux_loss": None},
            {"weights": None, "weights_backbone": None, "aux_loss": True},  # torchvision's weights have this head
        ),
        (
            {"weights": None, "weights_backbone": "DEFAULT", "aux_loss": None},
            {"weights": None, "weights_backbone": None, "aux_loss": None},
        ),
        ({"weights": [1.0, 0.1]}, {"weights": [1.0, 0.1]}),  # of losses
    ],
)
def test_a_checkpoint_needs_no_pretrained_weights(settings, expected):
    disable_pretrained(settings)
    assert settings == expected


def test_there_are_no_baselines():
    callbacks = [Namespace(init_args=Namespace(num_images=3))]
    assert not evaluates_initial_weights(callbacks)
    disable_baselines(callbacks)
    assert callbacks == [Namespace(init_args=Namespace(num_images=3))]
