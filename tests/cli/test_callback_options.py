from pathlib import Path

import pytest
import yaml
from pytorch_lightning import LightningModule

from lightning_recall.callbacks import RetrievalEvaluation, RetrievedImages
from lightning_recall.cli.callback_options import with_optional
from lightning_recall.cli.command import RecallCLI
from lightning_recall.modules import RetrievalModule

GLYPHS = Path(__file__).parents[2] / "configs" / "glyphs.yaml"


@pytest.fixture
def built(command, glyph_folder, monkeypatch):
    """The command with its Trainer, which does not run."""

    def call(*args):
        made = []
        monkeypatch.setattr(RecallCLI, "run_subcommand", lambda self, _: made.append(self))
        command("fit", "--config", GLYPHS, "--data.root", glyph_folder, "--trainer.logger", "false", *args)
        return made[0]

    return call


def evaluation(cli):
    (found,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, RetrievalEvaluation)]
    return found


def test_a_configs_own_evaluation_stays_as_it_is(built):
    cli = built()
    assert evaluation(cli).baselines is not None
    assert cli.config.fit.evaluation.baselines is True  # config.yaml says what ran


def test_options_set_the_evaluation_of_a_config(built):
    found = evaluation(built("--evaluation.ks", "[1,10]", "--evaluation.scores", "[recall,map@r]"))
    assert (list(found.ks), list(found.scores)) == ([1, 10], ["recall", "map@r"])
    assert found.baselines is not None  # of the config


def test_an_option_may_be_its_default(built):
    cli = built("--evaluation.baselines", "false")
    assert evaluation(cli).baselines is None
    assert cli.config.fit.trainer.callbacks[0].init_args.baselines is False


@pytest.mark.parametrize("callbacks", ["null", "RetrievedImages"])
def test_every_run_has_an_evaluation(callbacks, built):
    found = evaluation(built("--trainer.callbacks", callbacks, "--evaluation.ks", "[5]"))
    assert list(found.ks) == [5]


def test_a_file_may_set_the_options(built, in_tmp_path):
    (in_tmp_path / "more.yaml").write_text("evaluation: {ks: [3]}\ntrainer: {callbacks: null}")
    assert list(evaluation(built("--config", in_tmp_path / "more.yaml")).ks) == [3]


def test_saved_settings_run_again(built, in_tmp_path):
    first = built("--evaluation.ks", "[1,10]")
    first._parser("fit").save(first.config.fit, in_tmp_path / "saved.yaml")  # as Lightning's SaveConfigCallback does
    settings = yaml.safe_load((in_tmp_path / "saved.yaml").read_text())
    assert settings["evaluation"]["ks"] == settings["trainer"]["callbacks"][0]["init_args"]["ks"] == [1, 10]
    assert list(evaluation(built("--config", in_tmp_path / "saved.yaml")).ks) == [1, 10]
    assert list(evaluation(built("--config", in_tmp_path / "saved.yaml", "--evaluation.ks", "[2]")).ks) == [2]


def test_modules_of_others_get_no_evaluation():
    class Own(RetrievalEvaluation):
        pass

    default, own, other = RetrievalEvaluation(), Own(), RetrievedImages()
    ours = object.__new__(RetrievalModule)
    assert with_optional([other], {"evaluation": default}, LightningModule()) == [other]
    assert with_optional(None, {"evaluation": default}, ours) == [default]
    assert with_optional(other, {"evaluation": default}, ours) == [default, other]
    assert with_optional([other, own], {"evaluation": default}, ours) == [other, own]
