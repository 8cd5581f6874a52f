import pytest
from jsonargparse import Namespace

from lightning_recall.modules import command
from lightning_recall.modules.command import (
    disable_baselines,
    disable_pretrained,
    evaluates_initial_weights,
    images_per_loaded_chunk,
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"backbone": "resnet18", "freeze_batch_norm": None}, True),
        ({"backbone": {"class_path": "SmallConvNet"}, "freeze_batch_norm": None}, False),
        ({"backbone": "resnet18", "freeze_batch_norm": False}, False),
        ({"backbone": {"class_path": "SmallConvNet"}, "freeze_batch_norm": True}, True),
    ],
)
def test_without_a_download_batch_norm_is_frozen_as_with_it(settings, expected):
    settings["pretrained"] = True
    disable_pretrained(settings)
    assert (settings["pretrained"], settings["freeze_batch_norm"]) == (False, expected)
    untrained = {"backbone": "resnet18", "pretrained": False}
    disable_pretrained(untrained)
    assert untrained == {"backbone": "resnet18", "pretrained": False}  # trained from the start, nothing is frozen


def test_other_classes_stay_as_they_are():
    for settings in ({}, {"width": 3}, {"pretrained": None}, {"freeze_batch_norm": None}):
        same = dict(settings)
        disable_pretrained(settings)
        assert settings == same
    settings = {"pretrained": "weights.pth"}
    disable_pretrained(settings)
    assert settings == {"pretrained": False}  # a class without freeze_batch_norm gets none


def test_baselines_need_the_initial_weights():
    plain, scoring = Namespace(init_args=Namespace(ks=[1])), Namespace(init_args=Namespace(baselines=["untrained"]))
    assert evaluates_initial_weights([plain, scoring])
    assert not evaluates_initial_weights([plain, Namespace(class_path="a.B")])
    assert not evaluates_initial_weights([])
    disable_baselines([plain, scoring, Namespace(class_path="a.B")])
    assert not evaluates_initial_weights([plain, scoring])
    assert plain == Namespace(init_args=Namespace(ks=[1]))


def test_chunks_are_loaded_as_they_are_embedded():
    assert images_per_loaded_chunk(7) == 7
    assert images_per_loaded_chunk("auto") == 512
    assert (("model.init_args.chunk_size", "data.init_args.chunk_size", images_per_loaded_chunk),) == command.LINKS
