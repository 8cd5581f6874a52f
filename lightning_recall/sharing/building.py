"""Builds a module from settings that may come from a stranger."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from lightning_recall.constructor_arguments import Code
from lightning_recall.sharing.settings import ARGUMENTS, CLASS, CODE, without_pretrained

TRUSTED = ("lightning_recall", "torch.nn", "torchvision", "timm", "peft")
"""packages whose modules are built without being asked for: their constructors run no code of a stranger"""


def build(settings: Any, trust: Sequence[str] | None = (), name: str = "model") -> Any:
    """Builds what settings describe, without weights; see `settings_of`.

    Args:
        settings: settings of a module, a list of such, {"code": text}, or plain values, which are returned.
        trust: classes or packages whose modules may be built, besides `TRUSTED`: "my_package", "my_package.MyLoss".
            None: none, for callers without such an argument.
        name: name of the argument that the result is for, for messages.

    Raises:
        ValueError: for a class that is not trusted, does not exist or is no module; for a module whose arguments were
            not recorded.

    >>> build({"class_path": "lightning_recall.models.GeM", "init_args": {"p": 4.0}}).p.item()
    4.0
    """
    if isinstance(settings, list):
        return [build(item, trust, name) for item in settings]
    if not isinstance(settings, dict):
        return settings
    if set(settings) == {CODE}:
        return Code(str(settings[CODE]), name)
    if set(settings) != {CLASS, ARGUMENTS}:
        return settings
    if not isinstance(settings[ARGUMENTS], dict):
        raise ValueError(
            f"{name} is a {settings[CLASS]}, whose constructor arguments were not recorded: {how_to_pass(name)}."
        )
    cls = find_class(str(settings[CLASS]), trust, name)
    arguments = build_arguments(settings[ARGUMENTS], trust, "" if name == "model" else f"{name}.")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built by {settings[CLASS]} of this version: {error}.") from error


def build_arguments(arguments: dict[str, Any], trust: Sequence[str] | None, prefix: str = "") -> dict[str, Any]:
    """Builds the arguments of a module; `prefix` precedes their names in messages."""
    kept = without_pretrained(arguments)
    return {name: build(value, trust, f"{prefix}{name}") for name, value in kept.items()}


def find_class(path: str, trust: Sequence[str] | None, name: str) -> type[nn.Module]:
    """Imports a class of modules; refuses, before it imports anything, a class that is not trusted."""
    allowed = (*TRUSTED, *(trust or ()))
    if not is_in(path, allowed):
        hint = "" if trust is None else f', or, if you trust it, trust=["{path}"]'
        raise ValueError(
            f"{name} is a {path}, which is not a class of {', '.join(TRUSTED)}, and could run any code: "
            f"{how_to_pass(name)}{hint}."
        )
    package, _, class_name = path.rpartition(".")
    try:
        found = getattr(import_module(package), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} is a {path}, which is not installed here: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name} must be a subclass of torch.nn.Module, but {path} is not: {how_to_pass(name)}.")
    if not is_in(f"{found.__module__}.{found.__qualname__}", allowed) and not is_in(path, trust or ()):
        raise ValueError(f"{name}: {path} is a class of another package, {found.__module__}: {how_to_pass(name)}.")
    return found


def is_in(path: str, packages: Sequence[str]) -> bool:
    """Whether a class is one of the given classes, or in one of the given packages."""
    return any(path == package or path.startswith(f"{package}.") for package in packages)


def how_to_pass(name: str) -> str:
    """Says which argument replaces a module that cannot be built; the outermost one that holds it."""
    outermost = name.split(".")[0]
    return f"pass {outermost}=... with such a module when loading it"
