"""Turns the messages of jsonargparse and of this package into one paragraph; needs neither torch nor Lightning."""

import difflib
import importlib
import re

from jsonargparse import ArgumentParser

from lightning_recall.cli.task_options import public_names, task_options

MAX_LENGTH = 800  # characters of a message, about a paragraph

WITHOUT_CLASS = (
    "An option of a class is set before its class. Choose the class first, such as --model.optimizer SGD before "
    "--model.optimizer.lr 0.1."
)

NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|- Expected a <class 'NoneType'>"
    r"|Given value|- Expected a path but|Expected a path but"
)


def simplify(message: str) -> str:
    """Removes jsonargparse internals from an error message.

    >>> print(simplify('''Parser key "model":
    ...   Does not validate against any of the Union subtypes
    ...   Errors:
    ...     - Problem with given class_path 'torch.nn.Dropout':
    ...         Option 'k' is not accepted
    ...     - Expected a <class 'NoneType'>
    ...   Given value type: <class 'str'>'''))
    model: torch.nn.Dropout: Option 'k' is not accepted. It takes: p, inplace.
    """
    lines = [line.strip() for line in message.splitlines()]
    text = " ".join(line.removeprefix("- ") for line in lines if line and not NOISE.match(line))
    text = re.sub(r'Parser key "([\w.]+)":', r"\1:", text)
    text = re.sub(r"Problem with given class_path '([\w.]+)':", r"\1:", text)
    text = re.sub(r"Does not validate against any of the Union subtypes ?", "", text)
    text = re.sub(r"Call to compute_fn of link '\w+\(([\w.]+).*?' with args .* failed: ", linked_setting, text)
    text = re.sub(r"No module named '(\w+)[\w.]*'", missing_package, text)
    text = re.sub(r"Empty module name", WITHOUT_CLASS, text)
    text = re.sub(r"Expected a dot import path string: ([\w.]+)", lambda match: unknown_class(match[1]), text)
    text = re.sub(
        r"Expected a <class '[\w.]*(?:Sequence|list|tuple)'>. Got value: ([\w., ]+)$", r"Write a list as [\1].", text
    )
    text = re.sub(r"(?:a )?<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"^Unexpected config:", 'A line of the settings file is not of the form "name: value":', text)
    text = re.sub(
        r"([\w.]+): Option '([\w.]+)' is not accepted(?!\. It)", lambda match: match[0] + options_of(match[1]), text
    )
    return without_repeats(text)


def without_repeats(text: str) -> str:
    """Removes sentences that repeat the end of an earlier sentence.

    >>> without_repeats("loss: ks: Write a list as [1]. Or x. ks: Write a list as [1].")
    'loss: ks: Write a list as [1]. Or x.'
    """
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.?!]) (?=\S)", text):
        if not any(earlier.endswith(sentence) for earlier in kept):
            kept.append(sentence)
    return " ".join(kept)


def linked_setting(match: re.Match[str]) -> str:
    """Name of the setting from which another one is computed, as an option.

    >>> simplify("Call to compute_fn of link 'size(model.init_args.encoder) --> b' with args (3) failed: No size.")
    'model.encoder: No size.'
    """
    return f"{match[1].replace('.init_args.', '.')}: "


def missing_package(match: re.Match[str]) -> str:
    """Error message for a package that is not installed, with the command that installs it, if one of ours does."""
    extras = {package: extra for task in task_options() for package, extra in task.EXTRAS.items()}
    extra = extras.get(match[1])
    return f'{match[1]} is not installed: pip install "lightning-recall[{extra}]"' if extra else match[0]


def unknown_class(name: str) -> str:
    """Error message for an unknown class, with the closest known name."""
    closest = difflib.get_close_matches(name, public_names(), 1)
    hint = f"Did you mean {closest[0]}?" if closest else "Name classes of other packages as package.module.Name."
    return f"There is no class {name}. {hint}"


def options_of(class_path: str) -> str:
    """Lists the options of a class in a sentence."""
    module, _, name = class_path.rpartition(".")
    options = ArgumentParser().add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    return f". It takes: {', '.join(options)}." if options else ". It takes none."


def shorten(text: str) -> str:
    """Cuts a text to the length of a paragraph."""
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 4]} ..."
