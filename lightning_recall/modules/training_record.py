"""Remembers on which data, with which recipe and with which test scores a module was trained."""

from collections.abc import Mapping
from typing import Any

import torch

from lightning_recall._lightning import LightningModule
from lightning_recall.modules.training_summary import learning_rates

CHECKPOINT_KEY = "training_record"


class ModuleWithTrainingRecord(LightningModule):
    """Keeps the facts that a model card needs; checkpoints and saved models hold them.

    Attributes:
        training_record: plain values: "data" (class and folder's name of the data module, images and classes of each
            split), "recipe" (optimizer, learning rate, epochs, batch size, ...) and "scores" (logged key -> score of
            the last test). Without the folder's path. Empty before training.
    """

    training_record: dict[str, Any] = {}  # noqa: RUF012  # replaced, never changed in place

    def on_train_start(self) -> None:
        """Records data and recipe; forgets the scores of earlier weights."""
        super().on_train_start()
        self.training_record = {"data": describe_data(self.trainer), "recipe": describe_recipe(self)}

    def on_train_epoch_start(self) -> None:
        """Counts the epochs, with the one that starts."""
        super().on_train_epoch_start()
        recipe = {**self.training_record.get("recipe", {}), "epochs": self.current_epoch + 1}
        self.training_record = {**self.training_record, "recipe": recipe}

    def on_test_end(self) -> None:
        """Records the scores."""
        super().on_test_end()
        logged = self.trainer.callback_metrics
        scores = {key: float(value) for key, value in logged.items() if key.startswith("test/")}
        data = {**self.training_record.get("data", {}), **describe_data(self.trainer)}
        self.training_record = {**self.training_record, "data": data, "scores": scores}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the record."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = self.training_record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the record."""
        super().on_load_checkpoint(checkpoint)
        self.training_record = dict(checkpoint.get(CHECKPOINT_KEY, {}))


def describe_data(trainer: Any) -> dict[str, Any]:
    """Class of the data module, name of its folder, and the images and classes of the splits that are known."""
    data = getattr(trainer, "datamodule", None)
    if data is None:
        return {}
    described: dict[str, Any] = {"class": type(data).__name__}
    root = str(getattr(data, "root", None) or "")
    if root:
        described["folder"] = root.replace("\\", "/").rstrip("/").rpartition("/")[2]
    for name in ("train", "val", "test"):
        part = getattr(data, f"{name}_data", None)
        parts = {f"{name} {key}": value for key, value in part.items()} if isinstance(part, Mapping) else {name: part}
        described |= {key: count(value) for key, value in parts.items() if hasattr(value, "labels")}
    return described


def count(dataset: Any) -> dict[str, int]:
    """Images and classes of a data set with `labels` (N,)."""
    labels = torch.as_tensor(dataset.labels)
    return {"images": len(labels), "classes": len(set(labels.flatten().tolist()))}


def describe_recipe(module: Any) -> dict[str, Any]:
    """Optimizer, learning rate, scheduler and batch of a training that starts, as plain values."""
    trainer = module.trainer
    optimizers = list(trainer.optimizers)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    schedulers = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
    data = getattr(trainer, "datamodule", None)
    embedder = getattr(module.embedder, "embedder", module.embedder)  # of a wrapper
    recipe = {
        "initial weights": "pretrained" if getattr(embedder, "is_pretrained", False) else "random",
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in optimizers),
        "learning rate": learning_rates(module, optimizers),
        "weight decay": max((float(group.get("weight_decay", 0)) for group in groups), default=0.0),
        "scheduler": ", ".join(schedulers),
        "batch size": getattr(data, "batch_size", None),
        "images per class in a batch": getattr(data, "samples_per_class", None),
        "precision": str(trainer.precision),
    }
    return {name: value for name, value in recipe.items() if value not in (None, "")}
