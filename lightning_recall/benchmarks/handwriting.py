"""Eight Omniglot alphabets, the handwriting data set of the loss benchmark."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_recall.data.augment import random_affine
from lightning_recall.data.images_in_memory import ImagesInMemory
from lightning_recall.datamodules import RetrievalDataModule

TRAINING = ("Japanese_(katakana)", "Sanskrit")
VALIDATION = ("Korean",)
ARCHIVES = ("images_background_small1.zip", "images_background_small2.zip")


class Handwriting(RetrievalDataModule):
    """Training on 89 characters of two alphabets, validation on 40 of a third, test on 113 of five; 20 images each.

    Validation uses a whole alphabet, because the test classes are whole alphabets too.

    Source: Lake, Salakhutdinov, Tenenbaum, Science 2015; MIT licence. 32 x 32 grey pixels, white on black.

    Args:
        root: folder with `images_background_small1.zip` and `images_background_small2.zip`.
        kwargs: passed to `RetrievalDataModule`.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)

    def read(self) -> dict[str, ImagesInMemory]:
        """Splits by alphabet; two alphabets are in both archives and are read once."""
        images: dict[str, Any] = {}
        for archive in ARCHIVES:
            if not (self.root / archive).exists():
                raise ValueError(
                    f"{self.root / archive} not found: download it from "
                    "https://github.com/brendenlake/omniglot/tree/master/python."
                )
            with zipfile.ZipFile(self.root / archive) as files:
                for name in sorted(files.namelist()):
                    if name.endswith(".png"):
                        with files.open(name) as file:
                            drawing = Image.open(file).convert("L").resize((32, 32), Image.Resampling.BOX)
                        images["/".join(Path(name).parts[-3:])] = 255 - np.asarray(drawing)
        characters = [name.rsplit("/", 1)[0] for name in images]
        _, labels = np.unique(characters, return_inverse=True)
        data = ImagesInMemory(np.stack(list(images.values()))[:, None], labels)
        alphabets = [name.split("/")[0] for name in images]
        train, val = np.isin(alphabets, TRAINING), np.isin(alphabets, VALIDATION)
        return {"train": data.select(train), "val": data.select(val), "test": data.select(~(train | val))}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments the chunks of a training batch on the device."""
        if not (self.trainer and self.trainer.training):
            return batch
        return [(random_affine(images), labels) for images, labels in batch]
