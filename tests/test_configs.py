from pathlib import Path

import pytest

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def options(config, glyph_folder):
    """What points a config at small data of the right format."""
    return {"glyphs": ("--data.root", glyph_folder)}[config.stem]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:OneCycleLR ends after")
@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_every_config_runs(config, subcommand, command, glyph_folder):
    command(subcommand, "--config", config, *options(config, glyph_folder), "--trainer.fast_dev_run", 2)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_hold_only_what_differs(config):
    assert len(config.read_text().splitlines()) <= 40
