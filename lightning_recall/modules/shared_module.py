"""Saves a module with its settings and a model card, and loads it again, from a folder or the Hugging Face Hub."""

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.modules.preprocessing import ModuleWithPreprocessing
from lightning_recall.modules.training_record import ModuleWithTrainingRecord
from lightning_recall.sharing.building import build_arguments, find_class
from lightning_recall.sharing.config import CONFIG, FORMAT, WEIGHTS, installed_versions, locate, read_config
from lightning_recall.sharing.model_card import TEMPLATE, card_values
from lightning_recall.sharing.settings import ARGUMENTS, CLASS, public_path, settings_of
from lightning_recall.sharing.weights import differences, load_weights, read_weights, save_weights

PICTURE = "retrieved_images.png"
CHECKPOINT_KEY = "constructor"


class SharedModule(
    ModuleWithPreprocessing,
    ModuleWithTrainingRecord,
    PyTorchModelHubMixin,
    library_name="lightning_recall",
    pipeline_tag="image-feature-extraction",
    tags=["image-retrieval"],
    model_card_template=TEMPLATE,
):
    """Adds `save_pretrained`, `push_to_hub` and `from_pretrained`; checkpoints load without arguments.

    A saved model is a folder with three files, without pickles: `model.safetensors` (parameters and
    buffers, of the loss too), `config.json` (the classes and constructor arguments of the module and its parts,
    preprocessing, similarity threshold, data, recipe and test scores, versions) and `README.md`, a model card. It
    contains neither the path of a file nor code: functions, such as the optimizer, are named only.
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        license: str | None = None,  # noqa: A002  # the name in the model card
        picture: str | Path | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Writes the model to a folder, which `from_pretrained` loads.

        Args:
            save_directory: a new folder, or one without a model; "~" is expanded. A README.md in it is kept.
            license: licence of the model, as the Hugging Face Hub names it, such as "apache-2.0"; None: not stated.
            picture: an image for the model card, such as the `retrieved_images.png` of a test; it is copied.
            kwargs: passed to `huggingface_hub.ModelHubMixin.save_pretrained`, such as `push_to_hub`, `repo_id`.

        Returns:
            The URL of the commit with `push_to_hub=True`, otherwise None.

        Raises:
            ValueError: if the folder holds a model or another picture of this name, there is no such picture, or a part
                of the state is no tensor.
        """
        folder = Path(save_directory).expanduser()
        existing = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
        if existing:
            raise ValueError(f"{folder} holds a model already ({existing[0]}): choose another folder, or delete it.")
        card = {**(kwargs.pop("model_card_kwargs", None) or {})}
        card |= {name: value for name, value in (("license", license), ("picture", picture)) if value is not None}
        if "picture" in card and not Path(card["picture"]).is_file():
            raise ValueError(f"picture must be an image file, no such file: {card['picture']}.")
        kwargs["config"] = kwargs.get("config") or self.sharing_config()
        self.warn_if_changed(kwargs["config"])
        if "picture" in card:
            copy_new(Path(card["picture"]), folder / PICTURE)
        return super().save_pretrained(folder, model_card_kwargs=card, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,  # noqa: A002  # the name in the model card
        picture: str | Path | None = None,
        **kwargs: Any,
    ) -> str:
        """Uploads the model to the Hugging Face Hub, into a new repository or as a new commit of an existing one.

        Args:
            repo_id: "owner/name".
            license: see `save_pretrained`.
            picture: see `save_pretrained`.
            kwargs: passed to `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private`, `token`, `branch`.

        Returns:
            The URL of the commit.
        """
        card = {**(kwargs.pop("model_card_kwargs", None) or {}), "title": repo_id, "model_id": repo_id}
        card |= {name: value for name, value in (("license", license), ("picture", picture)) if value is not None}
        url: str = super().push_to_hub(repo_id, model_card_kwargs=card, **kwargs)
        return url

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        map_location: str | torch.device = "cpu",
        trust: Sequence[str] = (),
        **arguments: Any,
    ) -> Self:
        """Loads a model that `save_pretrained` or `push_to_hub` has saved, in evaluation mode.

        Settings of a stranger could name any class, and building it could run any code. Only classes of
        lightning_recall, torch.nn, torchvision, timm and peft are built. Other parts are passed, `loss=MyLoss()`, or
        their classes are trusted.

        Args:
            pretrained_model_name_or_path: a folder, or the name "owner/name" of a repository of the Hub.
            revision: branch, tag or commit of the repository; None: its main branch.
            token: token for the Hub; None: the one saved by `hf auth login`, if any.
            cache_dir: folder of downloads; None: that of huggingface_hub.
            force_download: whether files are downloaded again.
            local_files_only: whether only files that are downloaded already are used.
            map_location: device of the module.
            trust: classes or packages whose modules may be built too: ["my_package", "other.MyLoss"].
            arguments: constructor arguments that replace the saved ones, such as `embedder`, `loss`, `optimizer`.

        Raises:
            ValueError: if there is no model, it is of another class or a newer version, a file is damaged, or a part
                cannot be built.
        """
        # not `super().from_pretrained`: it would take arguments of this method, such as `trust`, from the config
        download = {"revision": revision, "token": token, "cache_dir": cache_dir}
        download |= {"force_download": force_download, "local_files_only": local_files_only}
        files = locate(pretrained_model_name_or_path, download)
        config = read_config(files.config, files.source)
        module = cls.from_sharing_config(config, files.source, trust, arguments)
        load_weights(module, read_weights(files.weights), files.source)
        try:
            module.set_preprocessing(config.get("preprocessing"))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"preprocessing in {files.config} is not that of this version: {error}.") from error
        module.training_record = config.get("training") or {}
        if config.get("similarity_threshold") is not None:
            module.similarity_threshold = config["similarity_threshold"]
        return module.to(map_location).eval()

    @classmethod
    def from_sharing_config(
        cls, config: dict[str, Any], source: str, trust: Sequence[str] = (), arguments: dict[str, Any] | None = None
    ) -> Self:
        """Builds the module that `sharing_config` describes, without its weights; see `from_pretrained`."""
        settings, given = config["model"], arguments or {}
        chosen: type[Self] = cls
        if settings[CLASS] != public_path(cls):
            found = find_class(settings[CLASS], trust, "model")
            if not issubclass(found, cls):
                raise ValueError(f"{source} holds a {settings[CLASS]}, not a {cls.__name__}: load it with that class.")
            chosen = found
        saved = {name: value for name, value in (settings[ARGUMENTS] or {}).items() if name not in given}
        try:
            return chosen(**{**build_arguments(saved, trust), **given})
        except TypeError as error:
            raise ValueError(f"{source} cannot be built by {chosen.__name__} of this version: {error}.") from error

    def warn_if_changed(self, config: dict[str, Any]) -> None:
        """Warns if the settings build a module with other weights, since a part was replaced after its construction."""
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                built = self.from_sharing_config(config, "the model", [public_path(type(self))])
        except (ValueError, RuntimeError):
            return  # whoever loads it passes a part, or it cannot be built without memory
        found = differences(built.state_dict(), self.state_dict())
        if found:
            rank_zero_warn(
                f"The settings of this {type(self).__name__} build another model, as if a part had been replaced after "
                f"its construction: {found}. Pass the part to from_pretrained, such as embedder=..., to load it."
            )

    def sharing_config(self) -> dict[str, Any]:
        """The content of config.json, plain values: everything but weights that a loaded model needs."""
        return {
            "format": FORMAT,
            "model": settings_of(self),
            "preprocessing": self.preprocessing_settings(),
            "similarity_threshold": getattr(self, "similarity_threshold", None),
            "training": self.training_record,
            "versions": installed_versions(),
        }

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card; see `save_pretrained`."""
        known: Any = self._hub_mixin_info.model_card_data
        data = {**known.to_dict(), "license": kwargs.pop("license", None)}
        values: dict[str, Any] = {
            "title": type(self).__name__,
            "model_id": "FOLDER",
            **card_values(self.sharing_config()),
        }
        if kwargs.pop("picture", None) is not None:
            values["picture"] = PICTURE
        card: ModelCard = ModelCard.from_template(ModelCardData(**data), template_str=TEMPLATE, **{**values, **kwargs})
        return card

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self, save_directory / WEIGHTS)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the settings that build the module again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = settings_of(self)

    @classmethod
    def arguments_from_checkpoint(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments for `load_from_checkpoint`, without those that it was given.

        Raises:
            ValueError: for an argument that was not recorded, or is of a class that is not trusted; it names the
                argument to pass.
        """
        settings, given = checkpoint.get(CHECKPOINT_KEY), checkpoint.get("hyper_parameters", {})
        if settings is None:  # of an earlier version
            return {}
        if settings[CLASS] != public_path(cls):
            parameters = inspect.signature(cls).parameters.values()
            needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
            if set(needed) <= set(given):
                return {}
            raise ValueError(
                f"The checkpoint is of {settings[CLASS]}: call its load_from_checkpoint, or pass {', '.join(needed)} "
                f"to that of {cls.__name__}."
            )
        saved = {name: value for name, value in (settings[ARGUMENTS] or {}).items() if name not in given}
        return build_arguments(saved, None)


def copy_new(source: Path, target: Path) -> None:
    """Copies a file into a folder, which is created if necessary; a file that is there already stays.

    Raises:
        ValueError: if there is another file of this name.
    """
    if target.exists() and not target.samefile(source):
        raise ValueError(f"{target} exists, and is not overwritten: choose another folder, or delete it.")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
