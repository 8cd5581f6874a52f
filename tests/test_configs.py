from pathlib import Path

import pytest
import timm
import torch

from lightning_recall import RetrievalModule

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
PAPER_DATA_SETS = ("sop", "inaturalist", "vehicle_id", "cars196", "cub")
OTHERS = ("glyphs", "glyphs_recipe", "paper", "your_images", "digits_adaptation")  # the last in tests/adaptation
EXPERIMENTS = [path for path in CONFIGS if path.stem not in (*PAPER_DATA_SETS, *OTHERS)]
BACKBONES = {"_resnet50": "resnet50.tv_in1k"}
BACKBONES |= {f"_vit_b{patch}": f"vit_base_patch{patch}_224.augreg_in21k" for patch in (16, 32)}
SMALL_BACKBONES = ("resnet10t", "vit_tiny_patch16_224")  # convolutions, transformer
SMALL = ("--data.batch_size", 4, "--data.samples_per_class", 2, "--data.num_workers", 0, "--model.chunk_size", 2)
SMALL += ("--trainer.fast_dev_run", 1)
pytestmark = [
    pytest.mark.filterwarnings("ignore:OneCycleLR ends after"),
    pytest.mark.filterwarnings("ignore:.* lists .* images of .* classes, but the published split"),
]


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_glyphs_run(subcommand, command, glyph_folder):
    command(subcommand, "--config", FOLDER / "glyphs.yaml", "--data.root", glyph_folder, "--trainer.fast_dev_run", 2)


@pytest.mark.filterwarnings("ignore:ModelCheckpoint monitors 'val/recall@1', but there is no validation")
def test_the_recipe_extends_the_config(command, glyph_folder):
    schedule = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 0)
    configs = ("-c", FOLDER / "glyphs.yaml", "-c", FOLDER / "glyphs_recipe.yaml", "--data.root", glyph_folder)
    command("fit", *configs, *schedule, "--trainer.enable_progress_bar", "false")
    saved = torch.load(next(Path("runs").rglob("last.ckpt")), weights_only=True)
    rates = [group["max_lr"] for group in saved["optimizer_states"][0]["param_groups"]]
    assert rates == [0.03, 3.0]
    proxies = saved["state_dict"]["loss.losses.1.proxies.known_labels"]
    assert 64 <= len(proxies.unique()) - 1 <= 128  # classes of two batches


def experiment_args(config, root):
    """The three configs of an experiment of the paper, on small data of the right format, without a download."""
    name = next(name for name in PAPER_DATA_SETS if config.stem.startswith(name))
    configs = [arg for stem in ("paper", name, config.stem) for arg in ("-c", FOLDER / f"{stem}.yaml")]
    return *configs, "--data.root", root(name), "--model.embedder.pretrained", "false", *SMALL


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_of_the_paper_train(config, command, small_data, tmp_path):
    backbone = BACKBONES[
        config.stem.removeprefix(next(name for name in PAPER_DATA_SETS if config.stem.startswith(name)))
    ]
    assert f"backbone: {backbone}" in config.read_text()
    full_size = config.stem.startswith("sop")  # one data set with the full network, the others with a small one
    small = () if full_size else ("--model.embedder.backbone", SMALL_BACKBONES[backbone.startswith("vit")])
    command("fit", *experiment_args(config, small_data), *small)
    assert not list(tmp_path.rglob("*.ckpt"))  # fast_dev_run saves nothing: a ViT with its optimizer takes a gigabyte


@pytest.mark.parametrize("name", PAPER_DATA_SETS)
def test_data_sets_of_the_paper_are_tested(name, command, small_data):
    args = experiment_args(FOLDER / f"{name}_vit_b32.yaml", small_data)
    command("test", *args, "--model.embedder.backbone", "resnet10t")


@pytest.mark.parametrize("subcommand", ["fit", "test", "predict"])
def test_your_images_run(subcommand, command, small_data):
    model = ("--model.embedder.pretrained", "false", "--model.embedder.backbone", "resnet10t")
    own = ("-c", FOLDER / "your_images.yaml", "--data.root", small_data("image_folder"), *model)
    command(subcommand, *own, "--data.num_workers", 0, "--data.batch_size", 16, "--trainer.fast_dev_run", 1)


def test_your_table_runs(command, small_data):
    model = ("--model.embedder.pretrained", "false", "--model.embedder.backbone", "resnet10t")
    table = ("--data", "ImageTableDataModule", "--data.file", small_data("image_table") / "images.csv")
    small = ("--data.num_workers", 0, "--data.batch_size", 16, "--trainer.fast_dev_run", 1)
    command("fit", "-c", FOLDER / "your_images.yaml", *table, *model, *small)


def test_a_checkpoint_needs_no_pretrained_weights(command, small_data, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), weights)
    data = ("-c", FOLDER / "paper.yaml", "-c", FOLDER / "cub.yaml", "--data.root", small_data("cub"), *SMALL[:-2])
    model = ("--model.embedder.backbone", "resnet10t", "--model.embedder.pretrained", weights)
    command("fit", *data, *model, "--trainer.max_steps", 1)
    weights.unlink()
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    command("test", *data, *model, "--ckpt_path", checkpoint)
    module = RetrievalModule.load_from_checkpoint(checkpoint)
    assert module.embedder.freeze_batch_norm
    with pytest.raises(ValueError, match="no such file"):
        command("test", *data, *model)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_short(config):
    assert len(config.read_text().splitlines()) <= 40
