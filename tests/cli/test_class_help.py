import re
from pathlib import Path

import pytest

GLYPHS = str(Path(__file__).parents[2] / "configs" / "glyphs.yaml")
IMAGES = str(Path(__file__).parents[2] / "configs" / "your_images.yaml")


@pytest.fixture
def shown(command, capsys):
    """What a command prints before it exits without an error."""

    def call(*args):
        with pytest.raises(SystemExit) as stopped:
            command(*args)
        printed = capsys.readouterr()
        assert stopped.value.code == 0, (args, printed.err)
        return printed.out

    return call


def test_every_help_option_that_a_help_text_names_works(shown):
    """Follows them to options such as --data.transforms.eval_transform.help, with the example that a list ends with."""
    tried, named = set(), {"--help"}
    while named - tried:
        option = min(named - tried)
        tried.add(option)
        text = shown("fit", *option.split())
        assert len(text) > 80, option
        found = re.findall(r"(?<!\w)--[\w.]+\.help(?= \[?CLASS|\n)|--[\w.]+\.help (?:\w+\.)*[A-Z][a-z]\w+", text)
        named |= {option for option in found if option.split()[0].count(".") <= 3 and "sampler.labels" not in option}
    assert {"--data.transforms.help", "--model.embedder.help", "--model.optimizer.help", "--model.loss.help"} <= tried
    assert {"--data.help ImageFolderDataModule", "--trainer.callbacks.help", "--model.lr_scheduler.help"} <= tried
    assert len(tried) > 20


@pytest.mark.parametrize(
    "args",
    [
        ("--data.transforms.help",),
        ("--config", IMAGES, "--data.transforms.help"),
        ("--data.transforms.help", "--config", IMAGES),
        ("--config", IMAGES, "--data.help", "ImageTableDataModule", "--data.transforms.help"),
        ("--data.transforms.help", "--data", "ImageTableDataModule", "--data.file", "x.csv"),
        ("--data.help=SOPDataModule", "--data.transforms.help"),
    ],
)
def test_the_image_size_is_found_from_everywhere(args, shown):
    text = shown("fit", *args)
    assert "--data.transforms.size SIZE" in text
    assert "usage: lightning-recall" in text


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--model.embedder.help",), "ImageEmbedder"),
        (("--config", GLYPHS, "--model.embedder.help"), "--model.embedder.embedding_dim"),
        (("--config", GLYPHS, "--model.loss.help"), "--model.loss.rank_temperature"),
        (("--config", GLYPHS, "--model.loss.help", "CircleLoss"), "--model.loss.gamma"),
        (("--config", GLYPHS, "--model.loss", "CircleLoss", "--model.loss.help"), "--model.loss.gamma"),
        (("--config", GLYPHS, "--model.lr_scheduler.help"), "--model.lr_scheduler.pct_start"),
        (("--config", GLYPHS, "--model.optimizer.help"), "--model.optimizer.weight_decay"),
        (("--model.optimizer.help", "SGD"), "--model.optimizer.momentum"),
        (("--model.optimizer.help", "torch.optim.SGD"), "--model.optimizer.nesterov"),
        (("--trainer.callbacks.help", "RetrievedImages"), "--trainer.callbacks.num_queries"),
        (("--config", GLYPHS, "--trainer.logger.help"), "--trainer.logger.save_dir"),
    ],
)
def test_help_is_that_of_the_chosen_class(args, expected, shown):
    assert expected in shown("fit", *args)


def test_options_below_an_option_without_a_value_are_printed(shown):
    assert "--data.transforms.eval_transform.size" in shown(
        "fit", "--data.transforms.eval_transform.help", "CenterCrop"
    )
    assert "CenterCrop" in shown("fit", "--data.transforms.eval_transform.help")
    assert "Loss" not in shown("fit", "--data.transforms.eval_transform.help")


def test_an_embedder_is_not_listed_among_losses(shown):
    losses, embedders = (shown("fit", f"--model.{name}.help").splitlines()[0] for name in ("loss", "embedder"))
    assert "RecallAtKLoss" in losses
    assert "Embedder" not in losses
    assert "RetrievalScores" not in losses
    assert "Loss" not in embedders
    module = re.sub(r"\s+", "", shown("fit", "--model.help", "RetrievalModule"))
    embedder = module.split("--model.embedder.help")[-1].split("--model.loss.help")[0]
    assert "lightning_recall.ImageEmbedder,lightning_recall.models.LoRAEmbedder,and" in embedder
    assert "Loss" not in embedder


@pytest.mark.parametrize("option", ["--model.embeder.help", "--data.nothing.help", "--nothing.help"])
def test_a_help_option_that_does_not_exist_is_an_error(option, command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("fit", option, "--config", GLYPHS)
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err
