"""Builds timm models as backbones: checks their names, and finds how their features are pooled."""

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from lightning_recall.checks import first_line
from lightning_recall.models.sources import SOURCES
from lightning_recall.models.weights import load_timm

Layout = Literal["vectors", "channels first", "channels last", "tokens"]
"""Shape of a backbone's output: (B, C), (B, C, H, W), (B, H, W, C) or (B, N, C)."""
Pooling = Literal["gem", "avg", "token"]
REJECTIONS = (AssertionError, RuntimeError, TypeError, ValueError, IndexError)  # raised by models for a wrong size


@dataclass(frozen=True)
class Backbone:
    """A timm model without classifier, and what its output looks like.

    Attributes:
        model: images (B, C, H, W) -> features.
        layout: shape of the features.
        num_features: number of channels C of the features.
        pooling: how the features become vectors; None: they are vectors.
        num_prefix_tokens: number of class and register tokens before the patch tokens.
        in_channels: number of channels of an image; None: unknown.
        image_size: height and width of an image; None: unknown, or not equal.
    """

    model: nn.Module
    layout: Layout
    num_features: int
    pooling: Pooling | None
    num_prefix_tokens: int
    in_channels: int | None
    image_size: int | None


def timm_backbone(name: str, pretrained: bool | str, pooling: Pooling | None, kwargs: Mapping[str, Any]) -> Backbone:
    """Builds a timm model without classifier.

    With pooling=None convnets output maps (B, C, H, W) for GeM, and other models use timm's own pooling and output
    (B, C).

    Raises:
        ValueError: for a name that timm does not know, arguments that the model does not accept, weights that cannot be
            loaded, and a pooling that the model does not support.
    """
    check_name(name)
    check_arguments(name, kwargs)
    has_maps = "global_pool" not in kwargs and outputs_maps(name, kwargs)
    model = create(name, pretrained, {**kwargs, "global_pool": ""} if has_maps else kwargs)
    layout: Layout = "channels first" if has_maps else "vectors"
    if pooling and not has_maps:
        layout = remove_pooling(model, name, pooling, kwargs)
    pooling = pooling or ("gem" if has_maps else None)
    if pooling == "token" and (layout != "tokens" or not has_class_token(model)):
        raise ValueError(f"{name} has no class token: pooling must be null, gem or avg.")
    shape = input_shape(model, kwargs)
    return Backbone(
        model=model,
        layout=layout,
        num_features=channels_of(model, layout, shape),
        pooling=pooling,
        num_prefix_tokens=getattr(model, "num_prefix_tokens", int(has_class_token(model))),
        in_channels=shape[0],
        image_size=shape[1] if shape[1] == shape[2] else None,
    )


def own_backbone(model: nn.Module, pooling: Pooling | None, kwargs: Mapping[str, Any] | None) -> Backbone:
    """A module that outputs (B, C) vectors or (B, C, H, W) maps as backbone.

    Raises:
        ValueError: if it has no `num_features`, and for settings that only apply to timm models.
    """
    name = type(model).__name__
    num_features: Any = getattr(model, "num_features", 0)
    if not num_features:
        raise ValueError(
            f"{name} has no num_features attribute: set it to the number of channels C of its output, (B, C) or "
            "(B, C, H, W)."
        )
    if kwargs:
        raise ValueError(f"backbone_kwargs apply to the name of a timm model: pass them to {name} itself.")
    if pooling == "token":
        raise ValueError("pooling: token applies to the name of a timm model: let your module output (B, C) vectors.")
    size: Any = getattr(model, "image_size", None)
    layout: Layout = "channels first" if pooling else "vectors"
    return Backbone(model, layout, num_features, pooling, 0, None, size if isinstance(size, int) else None)


def check_name(name: str) -> None:
    """Raises ValueError, with similar names, if timm does not know the name."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{name}: a folder with config.json and weights is needed; no such file: {folder}/config.json."
            )
        return
    if name.startswith(SOURCES):
        return
    if "/" in name or ":" in name:
        raise ValueError(
            f"timm has no model named {name!r}. Models of the Hugging Face Hub are named hf-hub:owner/name, a folder "
            "with config.json and weights local-dir:/path, and a weights file is passed as pretrained."
        )
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        found = [*difflib.get_close_matches(model, timm.list_models(), 5), *timm.list_models(f"*{model}*")[:5]]
        hint = f"Similar: {', '.join(list(dict.fromkeys(found))[:5])}." if found else "See timm.list_models()."
        raise ValueError(f"timm has no model named {name!r}. {hint}")
    if tag and name not in (known := timm.list_pretrained(f"{model}.*")):
        raise ValueError(f"timm has no weights named {name!r}. Known: {', '.join(known) or model}.")


def check_arguments(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that the embedder sets."""
    reserved = {"num_classes", "pretrained", "pretrained_cfg_overlay", "model_name"} & set(kwargs)
    if reserved:
        raise ValueError(
            f"backbone_kwargs of {name} must not contain {', '.join(sorted(reserved))}: the embedder sets it."
        )


def create(name: str, pretrained: bool | str, kwargs: Mapping[str, Any]) -> Any:
    """`load_timm` with one sentence for arguments that the model does not accept."""
    try:
        return load_timm(name, pretrained, **kwargs)
    except (TypeError, AssertionError, RuntimeError) as error:
        given = ", ".join(f"{key}: {value}" for key, value in kwargs.items() if (key, value) != ("global_pool", ""))
        if not given:
            raise ValueError(f"timm cannot build {name}: {first_line(error)}.") from error
        raise ValueError(f"{name} does not accept backbone_kwargs {{{given}}}: {first_line(error)}.") from error


def outputs_maps(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a timm model without its pooling outputs maps (B, C, H, W)."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, **{**kwargs, "global_pool": ""})
        output = meta_forward(model.eval(), (1, *input_shape(model, kwargs)))
    except OSError as error:
        raise ValueError(
            f"{name} was not found: {first_line(error)}. Check the name at https://huggingface.co; when offline, "
            "download the repository and name its folder, local-dir:/path."
        ) from error
    except REJECTIONS:  # the model does not support global_pool=""
        return False
    return layout_of(output, model) == "channels first"


def remove_pooling(model: Any, name: str, pooling: Pooling, kwargs: Mapping[str, Any]) -> Layout:
    """Makes a model output its tokens or maps, and returns their layout."""
    try:
        if "global_pool" in kwargs:
            raise ValueError(f"global_pool: {kwargs['global_pool']} in backbone_kwargs pools already")
        model.reset_classifier(0, "")
        layout = layout_of(meta_forward(model, (2, *input_shape(model, kwargs))), model)
        if layout == "vectors":
            raise ValueError("it outputs vectors")
    except (*REJECTIONS, AttributeError) as error:
        raise ValueError(f"{name} does not support pooling: {pooling}, use null: {first_line(error)}.") from error
    return layout


def layout_of(output: Any, model: Any) -> Layout:
    """Layout of a timm model's output."""
    widths = {model.num_features, getattr(model, "head_hidden_size", model.num_features)}
    shape = output.shape if isinstance(output, Tensor) else ()
    if len(shape) == 4 and shape[1] in widths:
        return "channels first"
    if len(shape) == 4 and shape[3] in widths:
        return "channels last"
    return "tokens" if len(shape) == 3 and shape[2] in widths else "vectors"


def channels_of(model: Any, layout: Layout, shape: tuple[int, int, int]) -> int:
    """Number of channels of a timm model's output."""
    try:
        output = meta_forward(model, (2, *shape))
        return int(output.shape[1 if layout in ("vectors", "channels first") else -1])
    except REJECTIONS:  # the model does not run on the meta device
        return int(getattr(model, "head_hidden_size", None) or model.num_features)


def has_class_token(model: nn.Module) -> bool:
    """Whether the first token of a transformer is a class token."""
    return getattr(model, "cls_token", None) is not None


def input_shape(model: Any, kwargs: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) of the images that a timm model expects: from its arguments, or its pretrained_cfg."""
    channels, height, width = model.pretrained_cfg["input_size"]
    size = kwargs.get("img_size") or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    return kwargs.get("in_chans", channels), height, width


def rejection(model: nn.Module, shape: tuple[int, ...]) -> str:
    """Why a model does not accept images of this shape; empty if it does."""
    try:
        meta_forward(model, shape)
    except REJECTIONS as error:
        return first_line(error)
    return ""


def meta_forward(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """The output of a model for images of this shape on the meta device, which computes only shapes.

    Raises whatever the model raises for images of this shape.
    """
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    state = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    with torch.no_grad():
        return torch.func.functional_call(model, state, (torch.zeros(shape, dtype=dtype, device="meta"),))


def crashes_channels_last(model: nn.Module) -> bool:
    """Whether a model has a strided 1x1 convolution of fewer than 16 channels, as MobileOne's stem.

    With weights and activations channels-last, its weight gradient corrupts memory on a CPU with AVX-512 (torch 2.14):
    the process ends with a segmentation fault, or later in an unrelated place.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels < 16
        for layer in model.modules()
    )
