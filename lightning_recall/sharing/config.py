"""The files of a saved model: where they are, and what config.json says."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from lightning_recall.checks import first_line
from lightning_recall.sharing.settings import ARGUMENTS, CLASS

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
"""version of config.json, higher once an earlier version of this package cannot read it"""
PACKAGES = ("lightning-recall", "torch", "torchvision", "timm", "peft")


class SavedModel(NamedTuple):
    """The files of a saved model.

    source: folder or name of the repository, for messages.
    config: path of config.json.
    weights: path of model.safetensors.
    """

    source: str
    config: Path
    weights: Path


def locate(source: str | Path, download: dict[str, Any]) -> SavedModel:
    """The files of a model in a folder, or of a repository of the Hugging Face Hub, which are downloaded.

    Args:
        source: the folder, or the name "owner/name" of a repository.
        download: arguments of `huggingface_hub.hf_hub_download`, such as `revision` and `token`.

    Raises:
        ValueError: if there is no such folder or repository, or it lacks config.json.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{source} holds no saved model: there is no file {CONFIG}.")
        return SavedModel(str(source), folder / CONFIG, folder / WEIGHTS)
    if folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise ValueError(f"{source} must be the folder of a saved model, or a repository owner/name of the Hub.")
    try:
        config, weights = (Path(hf_hub_download(str(source), name, **download)) for name in (CONFIG, WEIGHTS))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{source} is no folder here, and could not be downloaded from the Hugging Face Hub: {first_line(error)}."
        ) from error
    return SavedModel(str(source), config, weights)


def read_config(path: Path, source: str) -> dict[str, Any]:
    """The content of a config.json.

    Raises:
        ValueError: if it is damaged, another library wrote it, or a newer version of this package.
    """
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged, it is no JSON: save or download the model again.") from error
    model = config.get("model") if isinstance(config, dict) else None
    number = config.get("format") if isinstance(config, dict) else None
    if type(number) is int and number > FORMAT:
        used = (config.get("versions") or {}).get("lightning-recall", "a newer version")
        raise ValueError(
            f"{source} was saved by lightning-recall {used}, whose format this version cannot read: update."
        )
    if number != FORMAT or not isinstance(model, dict) or set(model) != {CLASS, ARGUMENTS}:
        raise ValueError(f"{source} holds no model of lightning_recall: {CONFIG} is of another library.")
    read: dict[str, Any] = config
    return read


def installed_versions() -> dict[str, str]:
    """Versions of this package and of those that it builds models with, if installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
