"""Settings of the retrieval task for the command `lightning-recall`; see `cli.task_options.TaskOptions`."""

from collections.abc import Sequence
from typing import Any

CLASS_MODULES = (
    "lightning_recall.callbacks",
    "lightning_recall.datamodules",
    "lightning_recall.losses",
    "lightning_recall.mixup",
    "lightning_recall.models",
    "lightning_recall.modules",
)
CALLBACKS = ("lightning_recall.callbacks.RunSummary", "lightning_recall.callbacks.InterruptCheckpoint")
MODEL_FILES = ("init_args.embedder.init_args.pretrained",)
TRAINING_STATE = ("mixup._extra_state",)  # the random state of SimilarityMixup
BACKBONE_OPTION = "--model.embedder.pretrained"
MEMORY_REMEDY = "set a smaller --model.chunk_size"

OVERVIEW = """Trains and tests image-retrieval models for Recall@k.

  lightning-recall fit --config configs/glyphs.yaml
  lightning-recall fit --config configs/your_images.yaml --data.root FOLDER
  lightning-recall test --config configs/your_images.yaml --data.root FOLDER --ckpt_path FILE"""
SUBCOMMANDS = {
    "fit": "Train a model, and validate it on held-out classes.",
    "validate": "Score a model on the validation classes.",
    "test": "Score a model on the test classes, with pictures and a report.",
    "predict": "Write the embeddings of the test images.",
}
OPTIONS = {
    "--data.batch_size 512": "images that the loss compares",
    "--model.chunk_size 64": "images per pass of the network; smaller values need less memory and give the same result",
    "--model.loss SupRecallAtKLoss": "any loss; set its options with, for example, --model.loss.delta 0.1",
}
CLASS_HELP = (
    "--model.help RetrievalModule",
    "--data.help ImageFolderDataModule",
    "--trainer.callbacks.help RetrievalEvaluation",
)


def images_per_loaded_chunk(chunk_size: int | str) -> int:
    """Images per loaded chunk; 512 if `chunk_size` is "auto", so that large chunks can be measured."""
    return 512 if isinstance(chunk_size, str) else chunk_size


LINKS = (("model.init_args.chunk_size", "data.init_args.chunk_size", images_per_loaded_chunk),)


def disable_pretrained(model: Any) -> None:
    """Sets `pretrained=False`, because the checkpoint's weights replace timm's download.

    Args:
        model: settings of the model, with `init_args`; changed in place.
    """
    embedder: Any = (model.get("init_args") or {}).get("embedder")
    settings = embedder.get("init_args") if hasattr(embedder, "get") else None
    if settings and settings.get("pretrained"):
        frozen = settings.get("freeze_batch_norm")
        settings["freeze_batch_norm"] = isinstance(settings.get("backbone"), str) if frozen is None else frozen
        settings["pretrained"] = False


def evaluates_initial_weights(callbacks: Sequence[Any]) -> bool:
    """Whether RetrievalEvaluation also scores the network with its initial weights, as a baseline.

    Args:
        callbacks: settings of the callbacks, each with `init_args`.
    """
    return any((callback.get("init_args") or {}).get("baselines") for callback in callbacks)
