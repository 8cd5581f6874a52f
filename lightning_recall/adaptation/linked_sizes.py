"""Sizes of networks that follow from the settings of the encoder, so that settings files need not repeat them."""

import copy
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import import_object

from lightning_recall.cli.task_options import disable_pretrained

CACHE: dict[str, int] = {}  # the command reads the settings several times


def feature_dim(encoder: Any) -> int:
    """Number of features of an encoder.

    Args:
        encoder: its settings, with `class_path` and `init_args`.

    Raises:
        ValueError: if the encoder has no attribute `feature_dim`.
    """
    key = str(encoder)
    if key not in CACHE:
        CACHE[key] = int(built_feature_dim(encoder))
    return CACHE[key]


def generator_input_dim(encoder: Any, num_classes: int, noise_dim: int) -> int:
    """Number of inputs of the generator of DM-ADA: features, condition and noise.

    Args:
        encoder: settings of the encoder.
        num_classes: K; the condition has K + 1 values, because the target domain is a class of its own.
        noise_dim: dimensions of the noise.
    """
    return feature_dim(encoder) + num_classes + 1 + noise_dim


def built_feature_dim(encoder: Any) -> int:
    """Builds an encoder without pretrained weights, for its number of features; 1 if it cannot be built.

    The module reports later why an encoder cannot be built.
    """
    import torch  # not at the top: the help of the command needs this file, but not torch

    settings = copy.deepcopy(encoder)  # which the next line changes
    disable_pretrained(settings)
    for device in ("meta", "cpu"):  # without memory, if the encoder allows it
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                built = build(settings)
        except Exception:  # an encoder of a user may raise anything
            continue
        dim = getattr(built, "feature_dim", None)
        if not isinstance(dim, int):
            raise ValueError(
                f"{type(built).__name__} has no attribute feature_dim: set it to D, the number of features that it "
                "returns, (B, D); or choose BackboneEncoder for a model of timm."
            )
        return dim
    return 1


def build(value: Any) -> Any:
    """The object that some settings describe, or the settings themselves if they describe none."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping) and "class_path" in value:
        given = value.get("init_args") or {}
        arguments = {**(vars(given) if isinstance(given, Namespace) else given), **(value.get("dict_kwargs") or {})}
        return import_object(value["class_path"])(**{name: build(argument) for name, argument in arguments.items()})
    return value
