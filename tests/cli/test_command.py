from pathlib import Path

import pytest
import yaml

GLYPHS = Path(__file__).parent.parent.parent / "configs" / "glyphs.yaml"
QUICK = ("--trainer.enable_progress_bar", "false", "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 0)
pytestmark = [
    pytest.mark.filterwarnings("ignore:OneCycleLR ends after"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_without_a_logger_every_run_has_a_folder_and_a_users_file_stays(command, glyph_folder, in_tmp_path, capsys):
    (in_tmp_path / "config.yaml").write_text("mine: true")
    for number, seed in enumerate((5, 6)):
        command(
            *("fit", "--config", GLYPHS, "--data.root", glyph_folder, "--seed_everything", seed, *QUICK),
            *("--trainer.logger", "false", "--trainer.max_epochs", 1, "--trainer.callbacks", "ModelCheckpoint"),
            *("--trainer.check_val_every_n_epoch", 1),
        )
        run = in_tmp_path / "runs" / f"version_{number}"
        assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == seed
        assert len(list((run / "checkpoints").glob("*.ckpt"))) == 1
        assert f"Metrics and settings: {run}" in capsys.readouterr().out
    assert (in_tmp_path / "config.yaml").read_text() == "mine: true"
    assert {name for name in files(in_tmp_path) if not name.startswith("runs/")} == {"config.yaml"}


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* is not empty")
def test_settings_of_a_run_with_a_used_version_stand_beside_the_others(command, glyph_folder, in_tmp_path, capsys):
    folder = in_tmp_path / "runs/glyphs/version_7"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("of: another run")
    logger = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name", "glyphs")
    command(
        *("fit", "--config", GLYPHS, "--data.root", glyph_folder, *QUICK, "--trainer.max_epochs", 1),
        *(*logger, "--trainer.logger.version", 7, "--trainer.callbacks", "TrainingCurves"),
    )
    assert (folder / "config.yaml").read_text() == "of: another run"
    assert "class_path" in (folder / "config-1.yaml").read_text()
    assert "Settings, beside those of another run: runs/glyphs/version_7/config-1.yaml" in capsys.readouterr().out


def test_a_trial_leaves_nothing(command, glyph_folder, in_tmp_path):
    command(
        *("predict", "--config", GLYPHS, "--data.root", glyph_folder, "--trainer.fast_dev_run", 1),
        *("--trainer.enable_progress_bar", "false"),
    )
    assert files(in_tmp_path) == set()
