"""Omniglot: handwritten characters of fifty alphabets."""

from typing import Any

from torchvision.datasets import Omniglot

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, encode_labels, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Omniglot is downloaded automatically. If that fails, download python/images_background.zip and "
    "python/images_evaluation.zip from https://github.com/brendenlake/omniglot and unpack them in root/omniglot-py."
)
SPLITS = {"train": "images_background", "test": "images_evaluation"}
TRANSFORMS = ImageTransforms(size=32, resize=32, min_scale=0.6, flip=False, mode="L")


class OmniglotDataModule(RetrievalDataModule):
    """Omniglot: 32,460 drawings of 1,623 characters, 20 each; retrieves drawings of the same character.

    Train: 19,280 drawings of 964 characters in 30 alphabets. Test: 13,180 drawings of 659 characters in 20 other
    alphabets; every test image is a query against all others. `val_classes` of the training characters are held out
    for validation. The alphabet is passed to the sampler as the super-class. Images are grey, 32 x 32 pixels by
    default.

    Source: Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction",
    Science 2015. Licence: MIT.

    Args:
        root: folder for the download of 9 MB, 150 MB unpacked.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: if the data are missing and cannot be downloaded.
    """

    def __init__(self, root: str = "data", transforms: ImageTransforms | None = TRANSFORMS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or TRANSFORMS

    def prepare_data(self) -> None:
        """Downloads missing files."""
        for part in SPLITS.values():
            if not (self.root / Omniglot.folder / part).exists():
                try:
                    Omniglot(str(self.root), background=part == SPLITS["train"], download=True)
                except (OSError, RuntimeError) as error:
                    raise ValueError(f"Cannot download Omniglot to {self.root}: {error}. {SOURCE}") from error

    def read(self) -> dict[str, ImageFiles]:
        """Reads ALPHABET/characterNN/*.png of both splits."""
        folders = [require_path(self.root / Omniglot.folder / part, SOURCE) for part in SPLITS.values()]
        files = [sorted(folder.glob("*/*/*.png")) for folder in folders]
        for folder, found in zip(folders, files, strict=True):
            if not found:
                raise ValueError(f"{folder} holds no ALPHABET/CHARACTER/*.png. {SOURCE}")
        labels = encode_labels(*([str(file.parent) for file in part] for part in files))
        alphabets = encode_labels(*([str(file.parent.parent) for file in part] for part in files))
        paths = [[str(file.relative_to(self.root)) for file in part] for part in files]
        train, test = (
            ImageFiles(self.root, *columns, transforms=self.transforms)
            for columns in zip(paths, labels, alphabets, strict=True)
        )
        check_counts(folders[0], train, 19_280, 964)
        check_counts(folders[1], test, 13_180, 659)
        return {"train": train, "test": test}
