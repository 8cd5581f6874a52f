from pathlib import Path

import pytest

from lightning_recall.cli.suggestions import did_you_mean

GLYPHS = str(Path(__file__).parents[2] / "configs" / "glyphs.yaml")
IMAGES = str(Path(__file__).parents[2] / "configs" / "your_images.yaml")


@pytest.fixture
def refused(command, capsys):
    """The error of a command that the parser refuses."""

    def call(*args):
        with pytest.raises(SystemExit) as stopped:
            command(*args)
        assert stopped.value.code == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return error

    return call


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--trainer.max_epoch", "--trainer.max_epochs"),  # argparse would take it as an abbreviation
        ("--trainer.max_epocks", "--trainer.max_epochs"),
        ("--seed_every", "--seed_everything"),
        ("--model.los.x", "--model.loss"),
        ("--model.lss", "--model.loss"),
        ("--model.loss.rank_temp", "--model.loss.rank_temperature"),
        ("--model.embedder.backbon", "--model.embedder.backbone"),
        ("--model.optimizer.lrr", "--model.optimizer.lr"),
        ("--model.lr_scheduler.pct_strat", "--model.lr_scheduler.pct_start"),
        ("--data.batch", "--data.batch_size"),
        ("--data.val_class", "--data.val_classes"),
        ("--root", "--data.root"),
        ("--lr", "--model.optimizer.lr"),
        ("--batch_size", "--data.batch_size"),
        ("--trainer.callbacks.scors", "--evaluation.scores"),
        ("--evaluation.score", "--evaluation.scores"),
    ],
)
def test_the_closest_option_is_suggested(option, meant, refused):
    error = refused("fit", "--config", GLYPHS, option, "3")
    assert error.endswith(f" Did you mean {meant}?")
    assert error.count("Did you mean") == 1


def test_options_of_a_class_chosen_on_the_command_line_are_suggested(refused):
    args = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.moment", "0.9")
    assert refused("fit", "--config", GLYPHS, *args).endswith(" Did you mean --model.optimizer.momentum?")
    args = ("--config", IMAGES, "--data.root", ".", "--data.images.size", "96")
    assert refused("fit", *args).endswith(" Did you mean --data.transforms.size?")


@pytest.mark.parametrize("option", ["--trainer.nope", "--qqq", "--model.zzzzzz"])
def test_nothing_is_suggested_for_something_else(option, refused):
    error = refused("fit", "--config", GLYPHS, option, "3")
    assert option.rpartition(".")[2].removeprefix("--") in error
    assert "Did you mean" not in error


def test_keys_of_a_file_are_suggested(refused, in_tmp_path):
    (in_tmp_path / "more.yaml").write_text("trainer: {max_epoch: 3}")
    assert refused("fit", "--config", GLYPHS, "--config", "more.yaml").endswith(" Did you mean --trainer.max_epochs?")
    (in_tmp_path / "more.yaml").write_text("model: {init_args: {loss: {init_args: {rank_temperatur: 3}}}}")
    error = refused("fit", "--config", GLYPHS, "--config", "more.yaml")
    assert error.endswith(" Did you mean --model.loss.rank_temperature?")


@pytest.mark.parametrize(
    "args",
    [
        ("fit",),
        ("fit", "--data.root", "photos"),
        ("fit", "--data", "ImageFolderDataModule", "--data.root", "photos"),
        ("fit", "--model.embedder.backbone", "resnet18"),
        ("test", "--data.root", "photos"),
    ],
)
def test_without_settings_a_file_to_start_with_is_named(args, refused):
    assert "pass a settings file, such as --config configs/your_images.yaml --data.root FOLDER" in refused(*args)


def test_missing_settings_are_named_as_options(refused):
    assert refused("fit", "--config", IMAGES) == "error: Required: --data.root."
    error = refused("fit", "--config", GLYPHS, "--model.loss", "ProxyAnchorLoss")
    assert error == "error: Required: --model.loss.num_classes, --model.loss.embedding_dim."


def test_an_option_of_a_class_that_is_not_chosen_keeps_its_advice(refused):
    error = refused("fit", "--config", GLYPHS, "--model.optimizer=null", "--model.optimizer.lr", "0.1")
    assert "Choose the class first" in error


@pytest.mark.parametrize(("option", "value"), [("--data.root", "x"), ("--model.embedder", "ImageEmbedder")])
def test_options_before_the_settings_file_are_to_be_moved(option, value, refused):
    error = refused("fit", option, value, "--config", IMAGES, "--data.batch_size", "8")
    root = option.split(".")[0]
    assert error == f"error: {option} is before --config or {root}, which choose its class: write it after them."


def test_whole_names_win_over_last_parts():
    known = ["model.loss_lr", "model.optimizer.lr", "model.optimizer.weight_decay", "trainer.log_every_n_steps"]
    assert did_you_mean("lr", known) == " Did you mean --model.optimizer.lr?"
    assert did_you_mean("model.los_lr", known) == " Did you mean --model.loss_lr?"
    assert did_you_mean("x", known) == did_you_mean("x", []) == ""
