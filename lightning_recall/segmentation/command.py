"""Settings of the segmentation task for the command `lightning-recall`; see `cli.task_options.TaskOptions`."""

from collections.abc import Sequence
from typing import Any

NAME = "segmentation"
CLASS_MODULES = (
    "lightning_recall.callbacks",
    "lightning_recall.optimization",
    "lightning_recall.segmentation.callbacks",
    "lightning_recall.segmentation.data",
    "lightning_recall.segmentation.datamodules",
    "lightning_recall.segmentation.losses",
    "lightning_recall.segmentation.models",
    "lightning_recall.segmentation.module",
)
CALLBACKS = ("lightning_recall.callbacks.RunSummary", "lightning_recall.callbacks.InterruptCheckpoint")
EVALUATION: dict[str, str] = {}  # SegmentationModule adds ClassTable
MODULE = "lightning_recall.segmentation.module.SegmentationModule"
OWN_CLASSES = ("lightning_recall.segmentation.*",)
EXTRAS = {"segmentation_models_pytorch": "segmentation"}
MODEL_FILES = ("pretrained",)
TRAINING_STATE = ()
BACKBONE_OPTION = "--model.network.pretrained"
MEMORY_REMEDY = "set a smaller --data.batch_size or --data.transforms.crop_size"

OVERVIEW = """Trains and tests networks for semantic segmentation, with losses for rare classes and for boundaries.

  lightning-recall fit --config configs/segmentation/scenes.yaml
  lightning-recall fit --config configs/segmentation/your_masks.yaml --data.root FOLDER --model.num_classes 5
  lightning-recall test --config configs/segmentation/camvid.yaml --data.root FOLDER --ckpt_path FILE"""
SUBCOMMANDS = {
    "fit": "Train a network, and score it on the validation images after each epoch.",
    "validate": "Score a network on the validation images.",
    "test": "Score a network on the test images, with a table of the classes and pictures.",
    "predict": "Write the predicted masks of the test images.",
}
OPTIONS = {
    "--data.root FOLDER": "folder of the images and masks",
    "--data.transforms.crop_size 512": "height and width of training images in pixels",
    "--data.batch_size 8": "images per step",
    "--model.num_classes 11": "number of classes, also of the network and the loss",
    "--model.network SmallUNet": "any network; --model.network.pretrained FILE: weights of a backbone",
    "--model.loss NAME": "any loss, such as RecallCrossEntropyLoss, or one of torch or another package",
    "--model.optimizer.lr 1e-3": "learning rate",
}
CLASS_HELP = (
    "--model.help SegmentationModule",
    "--model.network.help FeaturePyramidSegmenter",
    "--data.help MaskFolderDataModule",
    "--trainer.callbacks.help SegmentedImages",
)
CHOICES = {
    "model": "lightning_recall.segmentation.*",
    "data": "lightning_recall.segmentation.datamodules.*DataModule",
    "network": "lightning_recall.segmentation.models.*",
    "loss": "lightning_recall.segmentation.losses.*Loss",
    "train_transform": "torchvision.transforms.v2.*",
    "eval_transform": "torchvision.transforms.v2.*",
}
START = (
    "For segmentation, pass --config configs/segmentation/your_masks.yaml --data.root FOLDER --model.num_classes N for "
    "your own images and masks."
)


def same(value: Any) -> Any:
    """Returns its argument."""
    return value


LINKS = (
    ("model.init_args.num_classes", "model.init_args.network.init_args.num_classes", same),
    ("model.init_args.num_classes", "model.init_args.network.init_args.classes", same),  # segmentation_models_pytorch
    ("model.init_args.num_classes", "model.init_args.loss.init_args.num_classes", same),
    ("model.init_args.ignore_index", "model.init_args.loss.init_args.ignore_index", same),
)


def disable_pretrained(settings: Any) -> None:
    """Removes pretrained weights, because the checkpoint's weights replace them.

    Args:
        settings: settings of a class or function of the model: this package's (`pretrained`), one of
            segmentation_models_pytorch (`encoder_weights`), or one of torchvision (`weights`, `weights_backbone`);
            changed in place.
    """
    if settings.get("pretrained"):
        settings["pretrained"] = False
    if settings.get("encoder_weights"):
        settings["encoder_weights"] = None
    if "weights_backbone" not in settings:
        return
    if settings.get("weights") and "aux_loss" in settings:
        settings["aux_loss"] = True  # the architecture of torchvision's weights
    settings["weights"] = settings["weights_backbone"] = None


def evaluates_initial_weights(callbacks: Sequence[Any]) -> bool:  # noqa: ARG001  # every task has it
    """No callback scores a network with its initial weights in a test."""
    return False


def disable_baselines(callbacks: Sequence[Any]) -> None:
    """There are no baselines."""
