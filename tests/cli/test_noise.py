import logging
import warnings

import pytest

from lightning_recall._lightning import PACKAGE
from lightning_recall.cli.noise import hide_advice_on_callbacks, hide_noise


@pytest.mark.parametrize(
    ("message", "is_shown"),
    [
        ("\U0001f4a1 Tip: For seamless cloud uploads", False),
        ("\nDetected KeyboardInterrupt, attempting graceful shutdown ...", False),
        ("GPU available", True),
    ],
)
def test_words_of_lightning_that_help_nobody_are_hidden(message, is_shown, monkeypatch):
    logger = logging.getLogger(f"{PACKAGE}.utilities.rank_zero")
    monkeypatch.setattr(logger, "filters", [])
    with warnings.catch_warnings():
        hide_noise()
        warnings.warn("The dirpath has changed from a to b", stacklevel=1)  # an error in tests unless it is hidden
    assert bool(logger.filter(logging.LogRecord("", 20, "", 1, message, (), None))) == is_shown


def test_advice_on_the_callbacks_of_a_training_is_hidden():
    text = "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided"
    with warnings.catch_warnings():
        hide_advice_on_callbacks()
        warnings.warn(text, stacklevel=1)
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)
