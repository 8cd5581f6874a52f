"""Describes a module by plain values: its class, and the arguments that build it again."""

import sys
from typing import Any

from torch import nn

from lightning_recall.constructor_arguments import Code, current_arguments

CLASS, ARGUMENTS, CODE = "class_path", "init_args", "code"
"""keys of a module's settings, as in the settings files of the command, and of an argument that is a function"""


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Settings with which `build` builds a module again, up to its weights.

    Args:
        module: a module of this package, or of a class that inherits from one or is decorated by `record_arguments`.
            Of another class only its name is known: the arguments are None, and whoever loads the model passes a
            module.

    Returns:
        {"class_path": ..., "init_args": {name: value} or None}. Values are plain, {"code": text} for a function, or
        the settings of a module. Names of pretrained weights are left out, since the saved weights replace them; a
        module's method `portable_arguments(arguments)`, if it has one, replaces other arguments.

    >>> settings_of(nn.Sequential())
    {'class_path': 'torch.nn.Sequential', 'init_args': None}
    """
    arguments = current_arguments(module)
    if arguments is not None:
        replace: Any = getattr(module, "portable_arguments", dict)
        arguments = replace(arguments)
        arguments = without_pretrained({name: to_plain(value) for name, value in arguments.items()})
    return {CLASS: public_path(type(module)), ARGUMENTS: arguments}


def to_plain(value: Any) -> Any:
    """The settings of a module, or of each module in a list; {"code": text} for `Code`; plain values as they are."""
    if isinstance(value, nn.Module):
        return settings_of(value)
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    return {CODE: value.text} if isinstance(value, Code) else value


def without_pretrained(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that neither download nor read weights: `pretrained=False`, and no `checkpoint_path` for timm."""
    if arguments.get("pretrained"):
        arguments = {**arguments, "pretrained": False}
    if isinstance(given := arguments.get("backbone_kwargs"), dict):
        kept = {name: value for name, value in given.items() if name != "checkpoint_path"}
        arguments = {**arguments, "backbone_kwargs": kept}
    return arguments


def public_path(cls: type) -> str:
    """The shortest path under which a class can be imported: "lightning_recall.RecallAtKLoss"."""
    parts, name = cls.__module__.split("."), cls.__qualname__
    packages = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    found = (package for package in packages if getattr(sys.modules.get(package), name, None) is cls)
    return f"{next(found, cls.__module__)}.{name}"
