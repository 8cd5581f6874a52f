import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import Namespace
from PIL import Image

from lightning_recall.adaptation.command import LINKS, disable_baselines, disable_pretrained, evaluates_initial_weights
from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.cli import main, run

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDER = CONFIGS / "adaptation"
SMALL_DATA = ("--data.num_train", 60, "--data.num_test", 20, "--data.val_fraction", 0.2)
SMALL_DATA += ("--data.batch_size", 10, "--data.eval_batch_size", 10)
DEMO = ("--config", CONFIGS / "digits_adaptation.yaml", *SMALL_DATA)
MIXUP = ("--model.mixup", "DomainMixup")
SMALL = (*DEMO, *MIXUP, "--model.mixup.levels", "[feature]", "--trainer.check_val_every_n_epoch", 1)
SMALL += ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
DEVELOPMENT = ("--trainer.fast_dev_run", 1, "--trainer.accelerator", "cpu")
pytestmark = pytest.mark.usefixtures("quick_parsing")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a trained run of digits_adaptation.yaml, small."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lightning-recall"])
        patch.chdir(folder)
        main([str(arg) for arg in ("fit", *SMALL, "--trainer.max_epochs", 2)])
    return folder / "runs/digits_adaptation/version_0"


def test_fit_leaves_scores_settings_and_checkpoints(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= names
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt"}
    with (trained / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"train/mixup_loss", "val/source/accuracy", "val/target/accuracy", "val/target/bnm"} <= set(columns)


def test_test_scores_both_domains(trained, command, capsys):
    command("test", *SMALL, "--ckpt_path", trained / "checkpoints/last.ckpt")
    folder = Path("runs/digits_adaptation/version_0")
    assert (folder / "confusion_matrix_test.png").exists()
    assert "confusion_matrix_test.png" in capsys.readouterr().out
    with (folder / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"test/source/accuracy", "test/target/accuracy"} <= set(columns)


def test_predict_writes_the_classes_of_the_target(trained, command):
    command("predict", *SMALL, "--ckpt_path", trained / "checkpoints/last.ckpt")
    with Path("runs/digits_adaptation/version_0/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(20))
    assert all(row["name"] == row["class"] and 0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_the_checkpoint_loads_in_python(trained):
    last = trained / "checkpoints/last.ckpt"
    module = DANNModule.load_from_checkpoint(last)
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert module.classifier.layers[0].in_features == module.encoder.feature_dim == 800
    assert module.mixup.levels == ("feature",)


DIGITS = "{class_path: GaussianEncoder, init_args: {backbone: {class_path: DigitEncoder, init_args: {width: 4}}}}"


@pytest.mark.parametrize(
    "args",
    [
        ("--model", "SourceOnlyModule"),
        (),
        (*MIXUP, "--model.mixup.levels", "[pixel,feature]"),
        ("--model.classifier", "torch.nn.Linear", "--model.discriminator", "FeatureDiscriminator"),
        ("--model.encoder", "BackboneEncoder", "--model.encoder.backbone", "test_resnet"),
        ("--model", "DMADAModule", "--model.encoder", DIGITS, "--model.discriminator", "DigitDiscriminator",
         "--model.generator", "DigitGenerator", "--model.generator.width", 2, "--model.noise_dim", 3,
         "--model.optimizer", "null", "--data.image_size", 32, *MIXUP),
    ],
    ids=["source only", "as given", "both levels", "linear", "timm", "DM-ADA"],
)  # fmt: skip
def test_sizes_of_networks_are_set_once(args, command):
    command("fit", *DEMO, *args, *DEVELOPMENT)


def digits(count, *shape):
    """Images (count, *shape) uint8 and labels (count,)."""
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


def draw_digits(root):
    """A .npz file with the digits of MNIST and USPS."""
    arrays = {"mnist": (60, 28, 28), "usps_train": (40, 16, 16), "usps_test": (20, 16, 16)}
    named = {name: digits(*shape) for name, shape in arrays.items()}
    np.savez(root / "digits.npz", **{f"{name}_images": images for name, (images, _) in named.items()},
             **{f"{name}_labels": labels for name, (_, labels) in named.items()})  # fmt: skip
    return root / "digits.npz"


def draw_mnist(root):
    """MNIST's files, with a header of a magic number and the shape."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 60), ("t10k", 20)):
        for name, values in zip(("images-idx3", "labels-idx1"), digits(count, 28, 28), strict=True):
            header = np.array([0x800 + values.ndim, *values.shape], dtype=">i4").tobytes()
            (folder / f"{split}-{name}-ubyte").write_bytes(header + values.tobytes())
    return root


def draw_svhn(root):
    """MNIST's and SVHN's files; SVHN labels zeros as 10, and has the images last."""
    savemat = pytest.importorskip("scipy.io").savemat  # a test tool
    for split, count in (("train", 60), ("test", 20)):
        images, labels = digits(count, 32, 32, 3)
        savemat(
            root / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels, labels, 10)[:, None]}
        )
    return draw_mnist(root)


def draw_photos(root, *domains, num_classes=31):
    """Two photos of each class in each domain."""
    for domain in domains:
        for number in range(2 * num_classes):
            path = root / domain / f"class_{number % num_classes:02}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits(number + 1, 8, 8, 3)[0][-1]).save(path)
    return root


SMALL_NETWORKS = ("--model.generator.width", 2, "--model.discriminator.width", 2)
PHOTOS = ("--model.encoder.pretrained", "false", "--model.encoder.backbone", "test_resnet", "--data.num_workers", 0)
PHOTOS += ("--data.transforms.size", 32, "--data.transforms.resize", 36)
SETTINGS = {  # config -> data, further settings
    "mnist_usps": (draw_digits, ("--data.protocol", "full")),  # the released widths
    "svhn_mnist": (draw_svhn, SMALL_NETWORKS),
    "mnist_mnistm": (draw_mnist, SMALL_NETWORKS),
    "office31": (lambda root: draw_photos(root, "amazon", "webcam"), PHOTOS),
    "visda2017": (lambda root: draw_photos(root, "train", "validation", num_classes=12), PHOTOS),
    "your_domains": (
        lambda root: draw_photos(root, "photos", "sketches", num_classes=3),
        (
            "--data.source",
            "photos",
            "--data.target",
            "sketches",
            "--model.num_classes",
            3,
            "--data.val_fraction",
            0.5,
            *PHOTOS,
        ),
    ),
}


def test_every_config_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SETTINGS)


@pytest.mark.filterwarnings("ignore:ModelCheckpoint monitors")
@pytest.mark.parametrize("name", SETTINGS)
def test_every_config_trains(name, command, tmp_path):
    draw, settings = SETTINGS[name]
    (tmp_path / "data").mkdir()
    root = draw(tmp_path / "data")
    small = ("--data.batch_size", 4, "--data.eval_batch_size", 10)
    command("fit", "--config", FOLDER / f"{name}.yaml", "--data.root", root, *small, *settings, *DEVELOPMENT)


@pytest.mark.parametrize("config", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_short(config):
    lines = config.read_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120


def test_every_link_leads_to_a_network():
    targets = [target for _, target, _ in LINKS]
    assert len(set(targets)) == len(targets)
    assert {target.split(".")[2] for target in targets} == {"classifier", "discriminator", "generator"}


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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--data", "GlyphsDataModule"), "--data GlyphsDataModule is for retrieval, but DANNModule is for domain"),
        (("--model.discriminator", "SmallUNet"), "--model.discriminator SmallUNet is for segmentation"),
        (("--evaluation.ks", "[1]"), "--evaluation.ks is for retrieval, but DANNModule is for domain adaptation"),
        (("--model", "DANModule"), "Did you mean DANNModule?"),
        (("--model.encoder", "DigitEncodr"), "Did you mean DigitEncoder?"),
        (("--model.mixup_wight", "1"), "Did you mean --model.mixup_weight?"),
        (("--model.encoder", "torch.nn.Flatten"), "error: model.encoder: Flatten has no attribute feature_dim"),
        (("--model.encoder", "BackboneEncoder", "--model.encoder.backbone", "resnet81"), "named 'resnet81'. Similar"),
        (("--model.mixup.clip", "0.5"), "clip must be at least 0 and below 0.5"),
        (("--model.num_classes", "9"), "10"),
    ],
)
def test_errors_are_one_paragraph(args, message, error):
    found = error("fit", *DEMO, *args)
    assert message in found
    assert "Traceback" not in found


@pytest.mark.parametrize("asked", ["--model.help DANNModule", "--model.encoder.help BackboneEncoder"])
def test_classes_have_help(asked, command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("fit", *asked.split())
    assert stopped.value.code == 0
    assert asked.split()[1] in capsys.readouterr().out


def test_a_checkpoint_needs_no_pretrained_weights():
    settings = {"pretrained": "weights.pth", "bottleneck_dim": 3}
    disable_pretrained(settings)
    assert settings == {"pretrained": False, "bottleneck_dim": 3}


def test_there_are_no_baselines():
    callbacks = [Namespace(init_args=Namespace(num_images=3))]
    assert not evaluates_initial_weights(callbacks)
    disable_baselines(callbacks)
    assert callbacks == [Namespace(init_args=Namespace(num_images=3))]
