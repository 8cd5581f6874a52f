"""Settings of the domain adaptation task for the command `lightning-recall`; see `cli.task_options.TaskOptions`."""

from collections.abc import Sequence
from typing import Any

from lightning_recall.adaptation.linked_sizes import feature_dim, generator_input_dim

NAME = "domain adaptation"
CLASS_MODULES = (
    "lightning_recall.adaptation.callbacks",
    "lightning_recall.adaptation.dann",
    "lightning_recall.adaptation.datamodules",
    "lightning_recall.adaptation.dm_ada",
    "lightning_recall.adaptation.domain_mixup",
    "lightning_recall.adaptation.inverse_decay",
    "lightning_recall.adaptation.models",
    "lightning_recall.adaptation.source_only",
    "lightning_recall.callbacks",
    "lightning_recall.optimization",
)
CALLBACKS = ("lightning_recall.callbacks.RunSummary", "lightning_recall.callbacks.InterruptCheckpoint")
EVALUATION: dict[str, str] = {}  # AdaptationModule adds DomainTable
MODULE = "lightning_recall.adaptation.module.AdaptationModule"
OWN_CLASSES = ("lightning_recall.adaptation.*",)
EXTRAS: dict[str, str] = {}
MODEL_FILES = ("pretrained",)
TRAINING_STATE = ()
BACKBONE_OPTION = "--model.encoder.pretrained"
MEMORY_REMEDY = "set a smaller --data.batch_size"

OVERVIEW = """Trains classifiers for a target domain without labels, from a source domain with labels.

  lightning-recall fit --config configs/digits_adaptation.yaml
  lightning-recall fit --config configs/adaptation/your_domains.yaml --data.root FOLDER --data.source A --data.target B
  lightning-recall test --config configs/adaptation/your_domains.yaml --data.root FOLDER --ckpt_path FILE"""
SUBCOMMANDS = {
    "fit": "Train a classifier, and score it on both domains after each epoch.",
    "validate": "Score a classifier on the validation images of both domains.",
    "test": "Score a classifier on the test images of both domains, with a table of the classes and pictures.",
    "predict": "Write the predicted classes of the target's test images.",
}
OPTIONS = {
    "--data.root FOLDER": "folder with one folder per domain, each with one folder per class",
    "--data.source A --data.target B": "the labelled domain, and the one without labels",
    "--data.batch_size 32": "images of each domain per step",
    "--model DANNModule": "the method: DANNModule, DMADAModule or SourceOnlyModule",
    "--model.num_classes 31": "number of classes, also of the networks",
    "--model.encoder.backbone NAME": "a model of timm; --model.encoder.pretrained FILE: its weights",
    "--model.mixup null": "without domain mixup",
    "--model.optimizer.lr 1e-3": "learning rate",
}
CLASS_HELP = (
    "--model.help DANNModule",
    "--model.help DMADAModule",
    "--model.encoder.help BackboneEncoder",
    "--data.help DomainFolderDataModule",
    "--trainer.callbacks.help DomainImages",
)
CHOICES = {
    "model": "lightning_recall.adaptation.[ds]*Module",  # dann, dm_ada, source_only; not the base class
    "data": "lightning_recall.adaptation.datamodules.*DataModule",
    "encoder": "lightning_recall.adaptation.models.*Encoder",
    "backbone": "lightning_recall.adaptation.models.*Encoder",  # of a GaussianEncoder
    "classifier": "lightning_recall.adaptation.models.*Classifier",
    "discriminator": "lightning_recall.adaptation.models.*Discriminator",
    "generator": "lightning_recall.adaptation.models.*Generator",
    "mixup": "lightning_recall.adaptation.domain_mixup.*",
    "train_transform": "torchvision.transforms.v2.*",
    "eval_transform": "torchvision.transforms.v2.*",
}
START = (
    "For domain adaptation, pass --config configs/adaptation/your_domains.yaml --data.root FOLDER --data.source A "
    "--data.target B --model.num_classes N for your own images in one folder per domain and class."
)


def same(value: Any) -> Any:
    """Returns its argument."""
    return value


LINKS = (
    ("model.init_args.num_classes", "model.init_args.classifier.init_args.num_classes", same),
    ("model.init_args.num_classes", "model.init_args.classifier.init_args.out_features", same),  # torch.nn.Linear
    ("model.init_args.num_classes", "model.init_args.discriminator.init_args.num_classes", same),
    ("model.init_args.encoder", "model.init_args.classifier.init_args.feature_dim", feature_dim),
    ("model.init_args.encoder", "model.init_args.classifier.init_args.in_features", feature_dim),  # torch.nn.Linear
    ("model.init_args.encoder", "model.init_args.discriminator.init_args.feature_dim", feature_dim),
    (
        ("model.init_args.encoder", "model.init_args.num_classes", "model.init_args.noise_dim"),
        "model.init_args.generator.init_args.input_dim",
        generator_input_dim,
    ),
)


def disable_pretrained(settings: Any) -> None:
    """Sets `pretrained=False`, because the checkpoint's weights replace timm's download.

    Args:
        settings: settings of a class in the model; changed in place.
    """
    if settings.get("pretrained"):
        settings["pretrained"] = False


def evaluates_initial_weights(callbacks: Sequence[Any]) -> bool:  # noqa: ARG001  # every task has it
    """No callback scores a network with its initial weights in a test."""
    return False


def disable_baselines(callbacks: Sequence[Any]) -> None:
    """There are no baselines."""
