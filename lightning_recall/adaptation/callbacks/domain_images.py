"""Draws images of both domains, the mixes between them, and what a generator makes of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.adaptation.batches import domain_batch
from lightning_recall.adaptation.callbacks.undisturbed import undisturbed
from lightning_recall.adaptation.plots import draw_domain_images
from lightning_recall.callbacks.class_names import find_class_names
from lightning_recall.callbacks.output import end_progress_bar, output_path, save_picture, writes_files
from lightning_recall.checks import check_integer
from lightning_recall.data.messages import pluralize

RATIOS = (0.8, 0.6, 0.4, 0.2)


class Examples(NamedTuple):
    """Source images (n, 3, H, W), their labels (n,), and target images (n, 3, H, W), on the CPU."""

    source: Tensor
    labels: Tensor
    target: Tensor


class DomainImages(Callback):
    """Draws source images, mixed images and target images: `domain_images_epoch_10.png`.

    Rows lead from the source through the mixing ratios to the target. The right half, for modules with a generator,
    shows what it makes of the features of each image. The images are from the first training batch of rank zero, as
    the network sees them; of different classes where possible. Checkpoints hold them, so that all pictures of a resumed
    training show the same images. Weights and random numbers of the training do not change. The pictures are also sent
    to loggers that support images.

    The module must have a method `example_images(source_images, labels, target_images, ratios)`, as `DANNModule` and
    `DMADAModule` have. That of `SourceOnlyModule` returns no mixes.

    Args:
        num_images: columns of the picture; fewer if the batch has fewer images.
        every_n_epochs: draw after every so many epochs, and at the end of training; None: at the end only.
        ratios: fraction of the source in the mixed images. `DomainMixup` draws no ratios closer to one half than its
            `clip`, so a generator has not seen those in training.
        seed: seed of the choice of images.

    Raises:
        ValueError: for numbers out of range; when training starts: if the module has no `example_images`.
    """

    def __init__(
        self,
        num_images: int = 8,
        every_n_epochs: int | None = None,
        ratios: Sequence[float] = RATIOS,
        seed: int = 0,
    ) -> None:
        check_integer("num_images", num_images, 1)
        if every_n_epochs is not None:
            check_integer("every_n_epochs", every_n_epochs, 1)
        if not all(0 <= ratio <= 1 for ratio in ratios):
            raise ValueError(f"ratios must be between 0 and 1, got {list(ratios)}.")
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self.ratios = tuple(ratios)
        self.seed = seed
        self.examples: Examples | None = None
        self.last_epoch = 0  # after which a picture was drawn

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the images of an earlier training."""
        if stage == "fit":
            self.examples, self.last_epoch = None, 0
            if not callable(getattr(pl_module, "example_images", None)):
                raise ValueError(
                    f"DomainImages needs a module with example_images(source_images, labels, target_images, ratios); "
                    f"{type(pl_module).__name__} has none: use DANNModule or DMADAModule, or remove DomainImages."
                )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps some images of the first batch."""
        if self.examples is None:
            parts = domain_batch(batch, int(pl_module.num_classes))  # type: ignore[arg-type]  # nn.Module attributes are typed Tensor or Module
            source, target = choose_images(parts.labels, len(parts.target), self.num_images, self.seed)
            chosen = parts.source[source], parts.labels[source], parts.target[target]
            self.examples = Examples(*(part.detach().cpu().clone() for part in chosen))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws a picture every `every_n_epochs` epochs."""
        epochs = trainer.current_epoch + 1
        if self.every_n_epochs is not None and epochs % self.every_n_epochs == 0:
            self.draw(trainer, pl_module, epochs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last picture."""
        if trainer.current_epoch != self.last_epoch:
            end_progress_bar(trainer)
            self.draw(trainer, pl_module, trainer.current_epoch)

    def draw(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Draws a picture after some epochs."""
        self.last_epoch = epochs
        if self.examples is None or not writes_files(trainer):
            return
        path = output_path(trainer, f"domain_images_epoch_{epochs}.png")  # must be called on all processes
        if not trainer.is_global_zero:
            return
        owners = (pl_module, getattr(trainer, "datamodule", None))
        names = find_class_names(owners, int(pl_module.num_classes))  # type: ignore[arg-type]  # nn.Module attributes are typed Tensor or Module
        with undisturbed(pl_module):
            images = pl_module.example_images(*self.examples, self.ratios)  # type: ignore[operator]  # nn.Module attributes are typed Tensor or Module
        arrays = {name: part.permute(0, 2, 3, 1).cpu().numpy() for name, part in images.items()}
        captions = [names[label] for label in self.examples.labels.tolist()]
        title = f"After {pluralize(epochs, 'epoch')}"
        figure = draw_domain_images(arrays, captions, title)
        save_picture(trainer, figure, path, "Images of both domains", "domain_images")

    def state_dict(self) -> dict[str, Any]:
        """The images."""
        return {"examples": None if self.examples is None else self.examples._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the images from a checkpoint."""
        saved = state_dict["examples"]
        self.examples = None if saved is None else Examples(**saved)


def choose_images(labels: Tensor, num_target: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Chooses source images, of different classes if possible, and target images.

    Args:
        labels: (B,) labels of the source images.
        num_target: number of target images.
        count: number of images of each domain; fewer if there are fewer.
        seed: seed of the choice.

    Returns:
        Positions (n,) of source images, in the order of their labels, and positions (n,) of target images.
    """
    rng = np.random.default_rng(seed)
    classes = labels.tolist()
    seen: dict[int, int] = {}
    repeats = []  # (how many images of the class come before, position)
    for position in rng.permutation(len(classes)).tolist():
        label = classes[position]
        repeats.append((seen.get(label, 0), position))
        seen[label] = seen.get(label, 0) + 1
    count = min(count, len(classes), num_target)
    chosen = [position for _, position in sorted(repeats, key=lambda pair: pair[0])[:count]]
    source = sorted(chosen, key=lambda position: classes[position])
    return torch.tensor(source), torch.from_numpy(rng.permutation(num_target)[:count])
