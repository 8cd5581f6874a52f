"""Loads pretrained weights into a timm model, and says which keys differ if they belong to another model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from torch import nn

from lightning_recall.checks import first_line

SHOWN_KEYS = 3
CLASSIFIERS = {"head", "fc", "classifier", "head_dist", "last_linear"}  # a published file may hold a classifier
OFFLINE = (
    "Download model.safetensors on another machine from https://huggingface.co/timm and pass its path as pretrained; "
    "or train from scratch with pretrained=false."
)


class OtherWeightsError(Exception):
    """The weights belong to another model."""


def load_timm(name: str, pretrained: bool | str, **kwargs: Any) -> Any:
    """A timm model without classifier: randomly initialised, with pretrained weights, or with weights from a file.

    Args:
        name: name that `timm.create_model` accepts.
        pretrained: True: the weights of that name; a path: a .safetensors, .pth or .npz file.
        kwargs: arguments of the model.

    Raises:
        ValueError: if the weights cannot be loaded, or belong to another model.
        TypeError: if the model does not accept `kwargs`.
    """
    if isinstance(pretrained, str):
        check_file(pretrained)
        # the custom loaders of timm's models read .npz files
        load_options = {} if pretrained.endswith(".npz") else {"custom_load": False}
        kwargs["pretrained_cfg_overlay"] = {"file": pretrained, **load_options}
    if not pretrained:
        return timm.create_model(name, num_classes=0, **kwargs)
    source = pretrained if isinstance(pretrained, str) else name.partition("local-dir:")[2]
    try:
        with checked_loading(check_missing=bool(source)):
            return timm.create_model(name, pretrained=True, num_classes=0, **kwargs)
    except (OSError, RuntimeError, UnpicklingError, OtherWeightsError, KeyError, AssertionError) as error:
        reason = first_line(error)
        if isinstance(pretrained, str) and is_checkpoint(pretrained):
            raise ValueError(
                f"{pretrained} is a checkpoint of a training, not the weights of a backbone: pass it to the command as "
                f"--weights {pretrained}, or call RetrievalModule.load_from_checkpoint({pretrained!r})."
            ) from error
        if source or isinstance(error, OtherWeightsError):
            holder = source or "The download"
            raise ValueError(f"{holder} does not contain the weights of {name}: {reason}.") from error
        raise ValueError(f"Loading the weights of {name} failed: {reason}. {OFFLINE}") from error


def check_file(path: str) -> None:
    """Raises ValueError if there is no such file."""
    if not Path(path).is_file():
        raise ValueError(f"pretrained must be true, false or the path of a weights file; no such file: {path}.")


def is_checkpoint(path: str) -> bool:
    """Whether a file is a checkpoint, or the state_dict, of a RetrievalModule."""
    if Path(path).suffix not in {".ckpt", ".pth", ".pt"}:
        return False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError):
        return Path(path).suffix == ".ckpt"  # settings of the training may not be plain numbers
    return any(str(key).startswith("embedder.") for key in content.get("state_dict", content))


@contextmanager
def checked_loading(check_missing: bool) -> Iterator[None]:
    """Within it, `load_state_dict` raises OtherWeightsError if the weights belong to another model.

    timm removes the classifier and renames keys before it calls `load_state_dict`, and then ignores missing and
    unexpected keys; hence the check is made at that call.
    """
    load_state_dict = nn.Module.load_state_dict

    def load(module: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        found = differences(module, state, check_missing)
        if found:
            raise OtherWeightsError(found)
        expected = module.state_dict().keys()
        known = {key: value for key, value in state.items() if key in expected}  # timm warns of others
        return load_state_dict(module, known, *args, **kwargs)

    nn.Module.load_state_dict = load  # type: ignore[method-assign,assignment]  # restored below
    try:
        yield
    finally:
        nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]  # the original


def differences(model: nn.Module, state: Mapping[str, Any], check_missing: bool) -> str:
    """Says how the keys of a file differ from those of a model; empty if the file belongs to the model.

    A classifier and other layers that the model does not have may be in the file.

    Args:
        model: a timm model without classifier.
        state: the state_dict from the file, as timm converted it.
        check_missing: whether keys without their counterpart count, or only other shapes.
    """
    expected = model.state_dict()
    shapes = {key: (tuple(value.shape), tuple(expected[key].shape)) for key, value in state.items() if key in expected}
    other_shape = [f"{key}: {given} instead of {own}" for key, (given, own) in shapes.items() if given != own]
    missing, unexpected = [], []
    if check_missing:
        missing = [key for key, _ in model.named_parameters() if key not in state]
        stages = {key.split(".")[0] for key in expected} - CLASSIFIERS
        layers = [key for key in state if key.endswith((".weight", ".bias")) and key.split(".")[0] in stages]
        unexpected = [key for key in layers if key not in expected]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": other_shape}
    return "; ".join(f"{len(keys)} are {kind} ({shorten(keys)})" for kind, keys in kinds.items() if keys)


def shorten(keys: list[str]) -> str:
    """The first keys of a list."""
    return ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
