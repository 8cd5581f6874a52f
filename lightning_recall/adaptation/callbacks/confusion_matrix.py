"""Draws the confusion matrix of each domain."""

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.adaptation.callbacks.confusions import confusions_of
from lightning_recall.adaptation.plots import draw_confusion_matrices
from lightning_recall.callbacks.after_evaluation import AfterEvaluation
from lightning_recall.callbacks.class_names import find_class_names
from lightning_recall.callbacks.output import end_progress_bar, output_path, save_picture, writes_files


class ConfusionMatrix(AfterEvaluation):
    """After fit, validate and test, draws the confusion matrix of source and target: `confusion_matrix_test.png`.

    Rows are true classes and sum to 100 %. Up to 12 classes, each cell has the percentage and the number of images; up
    to 40 classes, the percentage. After fit, the picture shows the last validation: `confusion_matrix_val.png`. A
    domain without labels is not drawn. The picture is also sent to loggers that support images.

    The module must have an attribute `confusions`, as for `DomainTable`.

    Args:
        class_names: names of the classes; None: the module's `class_names`, those of the data module, or numbers.

    Raises:
        ValueError: after an evaluation: if the module has no `confusions`, or the number of names is not that of the
            classes.
    """

    attribute = "confusions"

    def show(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Writes the picture."""
        confusions = confusions_of(pl_module, "ConfusionMatrix")
        if not confusions or not writes_files(trainer):
            return
        num_classes = len(next(iter(confusions.values())))
        names = find_class_names((self, pl_module, getattr(trainer, "datamodule", None)), num_classes)
        path = output_path(trainer, f"confusion_matrix_{split}.png")  # must be called on all processes
        if trainer.is_global_zero:
            end_progress_bar(trainer)
            figure = draw_confusion_matrices({name: matrix.numpy() for name, matrix in confusions.items()}, names)
            save_picture(trainer, figure, path, "Confusion matrix")
