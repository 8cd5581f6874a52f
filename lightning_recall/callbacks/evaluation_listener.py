"""Base of the callbacks that compute further scores from the embeddings of RetrievalEvaluation."""

from abc import abstractmethod
from typing import NamedTuple

from lightning_recall._lightning import Callback, LightningModule, Trainer, callbacks_of
from lightning_recall.metrics import RetrievalScores, RevisitedMAP


class Evaluated(NamedTuple):
    """The embeddings of the model on one dataloader.

    split: "val" or "test".
    number: index of the dataloader.
    name: its name; "" for a single dataloader.
    metric: holds this process's embeddings, labels and roles.
    """

    split: str
    number: int
    name: str
    metric: RetrievalScores | RevisitedMAP


class EvaluationListener(Callback):
    """Gets the embeddings of each dataloader, on all processes, before the checkpoint of a validation is saved."""

    @abstractmethod
    def on_evaluated(self, trainer: Trainer, pl_module: LightningModule, evaluated: Evaluated) -> None:
        """Called by RetrievalEvaluation at the end of a validation or test, except in the sanity check; may log."""


def notify_listeners(trainer: Trainer, pl_module: LightningModule, evaluated: Evaluated) -> None:
    """Passes the embeddings of a dataloader to the listeners of a Trainer."""
    for listener in callbacks_of(trainer):
        if isinstance(listener, EvaluationListener):
            listener.on_evaluated(trainer, pl_module, evaluated)
