"""Settings of the retrieval task for the command `lightning-recall`; see `cli.task_options.TaskOptions`."""

from collections.abc import Sequence
from typing import Any

NAME = "retrieval"
CLASS_MODULES = (
    "lightning_recall.callbacks",
    "lightning_recall.datamodules",
    "lightning_recall.losses",
    "lightning_recall.mixup",
    "lightning_recall.models",
    "lightning_recall.modules",
    "lightning_recall.optimization",
    "lightning_recall.samplers",
)
CALLBACKS = ("lightning_recall.callbacks.RunSummary", "lightning_recall.callbacks.InterruptCheckpoint")
EVALUATION = {"evaluation": "lightning_recall.callbacks.RetrievalEvaluation"}
MODULE = "lightning_recall.modules.RetrievalModule"
OWN_CLASSES = (
    *(f"lightning_recall.{room}.*" for room in ("datamodules", "losses", "mixup", "modules", "samplers")),
    *(
        f"lightning_recall.callbacks.{file}.*"
        for file in ("embedding_writer", "evaluation_charts", "evaluation_report", "model_saving")
    ),
    *(f"lightning_recall.callbacks.{file}.*" for file in ("retrieval_evaluation", "retrieved_images")),
)
EXTRAS: dict[str, str] = {}
MODEL_FILES = ("pretrained",)
TRAINING_STATE = ("mixup._extra_state",)  # the random state of SimilarityMixup
BACKBONE_OPTION = "--model.embedder.pretrained (--model.embedder.embedder.pretrained in a wrapper such as LoRAEmbedder)"
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
    "--data.root FOLDER": "folder of the images",
    "--data.transforms.size 112": "height and width of the images in pixels",
    "--data.batch_size 512": "images that the loss compares",
    "--model.embedder.backbone NAME": "a model of timm, such as resnet50.tv_in1k or vit_base_patch16_224",
    "--model.embedder.pretrained FILE": "weights of the backbone; true downloads them, false starts at random",
    "--model.optimizer.lr 1e-4": "learning rate",
    "--model.loss SupRecallAtKLoss": "any loss; set its options with, for example, --model.loss.delta 0.1",
    "--model.chunk_size 64": "images per pass of the network; smaller values need less memory, same result",
    "--evaluation.ks [1,10]": "k of Recall@k; --evaluation.scores '[recall,map@r]' adds scores",
}
CLASS_HELP = (
    "--model.help RetrievalModule",
    "--model.embedder.help ImageEmbedder",
    "--data.help ImageFolderDataModule",
    "--data.transforms.help",
    "--trainer.callbacks.help RetrievedImages",
)
CHOICES = {
    "model": "lightning_recall.modules.*",
    "embedder": "lightning_recall.models.*Embedder",
    "backbone": "lightning_recall.models.*Net",
    "data": "lightning_recall.datamodules.*DataModule",
    "loss": "lightning_recall.losses.*Loss",
    "mixup": "lightning_recall.mixup.*",
    "test_time_augmentation": "lightning_recall.models.*MultiScale",
    "train_transform": "torchvision.transforms.v2.*",
    "eval_transform": "torchvision.transforms.v2.*",
}
START = (
    "Settings of the model and the data are missing: pass a settings file, such as --config configs/your_images.yaml "
    "--data.root FOLDER for your own images in one folder per class."
)


def images_per_loaded_chunk(chunk_size: int | str) -> int:
    """Images per loaded chunk; 512 if `chunk_size` is "auto", so that large chunks can be measured."""
    return 512 if isinstance(chunk_size, str) else chunk_size


LINKS = (("model.init_args.chunk_size", "data.init_args.chunk_size", images_per_loaded_chunk),)


def disable_pretrained(settings: Any) -> None:
    """Sets `pretrained=False`, because the checkpoint's weights replace timm's download.

    Args:
        settings: settings of a class in the model; changed in place.
    """
    if not settings.get("pretrained"):
        return
    settings["pretrained"] = False
    if "freeze_batch_norm" in settings and settings["freeze_batch_norm"] is None:
        settings["freeze_batch_norm"] = isinstance(settings.get("backbone"), str)


def evaluates_initial_weights(callbacks: Sequence[Any]) -> bool:
    """Whether RetrievalEvaluation also scores the network with its initial weights, as a baseline.

    Args:
        callbacks: settings of the callbacks, each with `init_args`.
    """
    return any((callback.get("init_args") or {}).get("baselines") for callback in callbacks)


def disable_baselines(callbacks: Sequence[Any]) -> None:
    """Sets `baselines=False`.

    Args:
        callbacks: settings of the callbacks, each with `init_args`; changed in place.
    """
    for callback in callbacks:
        if (callback.get("init_args") or {}).get("baselines"):
            callback["init_args"]["baselines"] = False
