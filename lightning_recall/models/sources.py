"""Describes a timm model of a folder or of a repository, so that it can be built without them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
PLACES = (
    "file",
    "url",
    "hf_hub_id",
    "source",
    "architecture",
)  # entries of a pretrained_cfg that name where it is from


def model_arguments(name: str) -> dict[str, Any]:
    """Arguments of the model in the config.json of a folder or repository; empty for a name that timm knows."""
    source, _, place = name.partition(":")
    if source == "local-dir":
        config: dict[str, Any] = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
        return config.get("model_args") or {}
    if name.startswith(SOURCES):
        _, _, arguments = timm.models.load_model_config_from_hf(place)
        return arguments or {}
    return {}


def without_source(
    arguments: Mapping[str, Any], pretrained_cfg: Mapping[str, Any], model_args: Mapping[str, Any], outputs_maps: bool
) -> dict[str, Any]:
    """Arguments of an `ImageEmbedder` that build its model by the name of the architecture.

    Args:
        arguments: arguments of the embedder.
        pretrained_cfg: that of its model.
        model_args: what `model_arguments` returned.
        outputs_maps: whether the embedder has replaced the model's pooling.
    """
    name = arguments["backbone"]
    if not isinstance(name, str) or not name.startswith(SOURCES):
        return dict(arguments)
    left_out = {"num_classes", *(["global_pool"] if outputs_maps or arguments["pooling"] else [])}
    config = {key: value for key, value in pretrained_cfg.items() if key not in PLACES}
    kwargs = {
        **{key: value for key, value in model_args.items() if key not in left_out},
        **(arguments["backbone_kwargs"] or {}),
        "pretrained_cfg": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
    }
    return {**arguments, "backbone": pretrained_cfg["architecture"], "backbone_kwargs": kwargs}
