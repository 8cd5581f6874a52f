"""Weights in a safetensors file: saved once if shared, and loaded into a module with their dtypes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SHOWN_KEYS = 3


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes the state_dict of a module, atomically; tensors that are one and the same are written once.

    Raises:
        ValueError: for a state that is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}  # place in memory -> name
    storages: set[int] = set()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}: a safetensors file holds only tensors.")
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in names:
            aliases[name] = names[place]
            continue
        names[place] = name
        saved = value.detach().cpu().contiguous()
        storage = saved.untyped_storage()
        is_part = storage.nbytes() != saved.nbytes or storage.data_ptr() in storages  # safetensors saves no views
        tensors[name] = saved.clone() if is_part else saved
        storages.add(storage.data_ptr())
    unfinished = path.with_name(f"unfinished-{path.name}")
    save_file(tensors, unfinished, aliases)
    os.replace(unfinished, path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict that `save_weights` has written.

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            aliases = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} has no weights: there is no file {path.name}.") from error
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or is no safetensors file: save or download it again.") from error
    shared = {name: tensors[kept] for name, kept in aliases.items() if kept in tensors and name not in tensors}
    return tensors | shared


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads a state_dict into a module, whose parameters and buffers take its dtypes.

    Args:
        module: the module; changed in place.
        weights: the state_dict.
        source: where the weights come from, for messages.

    Raises:
        ValueError: if the names or shapes are not those of the module.
    """
    expected = module.state_dict()
    found = differences(expected, weights)
    if found:
        raise ValueError(f"The weights in {source} do not belong to the model that its settings describe: {found}.")
    (own, saved) = ({v.dtype for v in state.values() if is_float(v)} for state in (expected, weights))
    if len(own) == len(saved) == 1 and own != saved:
        module.to(dtype=saved.pop())  # the whole module was cast, with the buffers that are not in the file
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in weights and weights[name].dtype != tensor.dtype:
                tensor.data = tensor.data.to(weights[name].dtype)
    module.load_state_dict(weights)


def differences(expected: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """Says how names and shapes of weights differ from those of a module's state_dict; empty if they do not."""
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name}: {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            for name, value in weights.items()
            if isinstance(expected.get(name), Tensor) and value.shape != expected[name].shape
            if not name.endswith("_extra_state")  # a module's own affair
        ],
    }
    return "; ".join(f"{len(names)} {kind} ({shorten(names)})" for kind, names in kinds.items() if names)


def is_float(value: Any) -> bool:
    """Whether a value is a tensor of floating point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def shorten(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:SHOWN_KEYS]) + (", ..." if len(names) > SHOWN_KEYS else "")
