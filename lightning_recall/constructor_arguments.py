"""Remembers the arguments with which a module was built, so that it can be saved and built again."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

from torch import nn

ATTRIBUTE = "_constructor_arguments"
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Code:
    """Stands for an argument that is no plain value, such as a function; a saved model does not hold it.

    Attributes:
        text: what it is, for readers.
        argument: name of the argument in a model that was loaded.
    """

    text: str
    argument: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError: it says which argument to pass."""
        raise ValueError(
            f"{self.argument} was {self.text} when the model was saved, which is code and not part of the saved model: "
            f"pass {self.argument.split('.')[0]}=... when loading it."
        )


class Recorded(NamedTuple):
    """What is remembered of the call of a constructor.

    Attributes:
        arguments: name -> plain value, or `Code`.
        live: names of the arguments that the module keeps as attributes: their current values count.
    """

    arguments: dict[str, Any]
    live: frozenset[str]


def record_arguments(cls: T) -> T:
    """Class decorator: instances of the class, and of its subclasses, remember their constructor's arguments.

    >>> @record_arguments
    ... class Scale(nn.Module):
    ...     def __init__(self, factor: float, bias: float = 0.0) -> None:
    ...         super().__init__()
    ...         self.factor = factor
    >>> scale = Scale(2.0)
    >>> scale.factor = 3.0
    >>> current_arguments(scale)
    {'factor': 3.0, 'bias': 0.0}
    """
    decorated: Any = cls
    record_constructor(decorated)

    def record_subclass(subclass: Any, /, **kwargs: Any) -> None:
        super(decorated, subclass).__init_subclass__(**kwargs)
        record_constructor(subclass)

    decorated.__init_subclass__ = classmethod(record_subclass)
    return cls


def record_constructor(cls: Any) -> None:
    """Replaces the constructor that a class defines, if it defines one, by one that remembers the arguments."""
    if "__init__" not in vars(cls):
        return
    init = cls.__init__
    signature = inspect.signature(init)

    @wraps(init)
    def recording_init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = None
        if type(self).__init__ is recording_init:  # otherwise a subclass calls it with arguments of its own
            bound = bind(signature, self, args, kwargs)
        given = None if bound is None else {name: to_recorded(value) for name, value in bound.items()}
        init(self, *args, **kwargs)
        if given is not None:
            live = frozenset(name for name, value in given.items() if is_kept(self, name, value))
            vars(self)[ATTRIBUTE] = Recorded(given, live)

    recording_init.__signature__ = signature  # type: ignore[attr-defined]  # inspect.getfullargspec reads only this
    cls.__init__ = recording_init


def bind(signature: inspect.Signature, module: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """All arguments of a call by name, with those in `**kwargs`.

    None for a call that does not fit the signature, and for positional arguments in `*args`, which have no names.
    """
    try:
        bound = signature.bind(module, *args, **kwargs)
    except TypeError:
        return None  # the constructor itself raises, with its own message
    bound.apply_defaults()
    _, *arguments = bound.arguments.items()
    kinds = {name: signature.parameters[name].kind for name, _ in arguments}
    if any(value for name, value in arguments if kinds[name] is inspect.Parameter.VAR_POSITIONAL):
        return None
    by_name: dict[str, Any] = {}
    for name, value in arguments:
        if kinds[name] is inspect.Parameter.VAR_KEYWORD:
            by_name |= value
        elif kinds[name] is not inspect.Parameter.VAR_POSITIONAL:
            by_name[name] = value
    return by_name


def is_kept(module: nn.Module, name: str, value: Any) -> bool:
    """Whether a module has an attribute that holds an argument: a module, an equal value, or what replaces None."""
    kept = getattr(module, name, Code)
    if isinstance(value, Code):
        return isinstance(kept, nn.Module)
    return is_plain(kept) and (value is None or to_recorded(kept) == value)


def current_arguments(module: nn.Module) -> dict[str, Any] | None:
    """The arguments with which a module would be built as it is now; None if its class does not record them.

    An argument that the module keeps as an attribute has the attribute's value, since settings may change.

    Returns:
        name -> plain value, module, list of modules, or `Code`.
    """
    recorded: Recorded | None = vars(module).get(ATTRIBUTE)
    if recorded is None:
        return None
    return {name: current_argument(module, recorded, name) for name in recorded.arguments}


def current_argument(module: nn.Module, recorded: Recorded, name: str) -> Any:
    """The current value of one argument; see `current_arguments`."""
    value = recorded.arguments[name]
    if name not in recorded.live:
        return value
    kept = getattr(module, name)
    if isinstance(kept, nn.ModuleList):
        return list(kept)
    if isinstance(kept, nn.Module):
        return kept
    is_measured = isinstance(value, str) and not isinstance(kept, str)  # chunk_size="auto" becomes a number
    return value if is_measured else to_recorded(kept)


def to_recorded(value: Any) -> Any:
    """A copy of a plain value, with lists for tuples; `Code` for anything else."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)) and is_plain(value):
        return [to_recorded(item) for item in value]
    if isinstance(value, Mapping) and is_plain(value):
        return {key: to_recorded(item) for key, item in value.items()}
    return value if is_plain(value) or isinstance(value, Code) else Code(describe(value))


def is_plain(value: Any) -> bool:
    """Whether a value is None, a number, a text, or a list or dict of such."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def describe(value: Any) -> str:
    """What an argument is, without memory addresses: "AdamW(lr=0.001)", "SmallConvNet"."""
    if isinstance(value, partial):
        function, args = value.func, value.args
        if function.__module__.startswith("jsonargparse."):  # calls one of its arguments, a class
            function, args = next(arg for arg in args if isinstance(arg, type)), ()
        settings = [*map(describe, args), *(f"{name}={describe(item)}" for name, item in value.keywords.items())]
        return f"{describe(function)}({', '.join(settings)})"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(describe, value))
    if isinstance(value, Code):
        return value.text
    return repr(value) if is_plain(value) else str(getattr(value, "__qualname__", type(value).__qualname__))
