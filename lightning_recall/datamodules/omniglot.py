"""Omniglot: handwritten characters of fifty alphabets."""

from typing import Any

from torchvision.datasets import Omniglot

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, encode_labels, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "It is downloaded by torchvision, or unpacked by hand from https://github.com/brendenlake/omniglot, "
    "python/images_background.zip and images_evaluation.zip, in root/omniglot-py."
)
PARTS = {"train": "images_background", "test": "images_evaluation"}


class OmniglotDataModule(RetrievalDataModule):
    """Finds a handwritten character by other hands: 32,460 drawings, 20 of each of 1,623 characters.

    Training 19,280 drawings of the 964 characters of 30 alphabets, test 13,180 drawings of the 659 of 20 others; every
    test image queries all the others. `val_classes` of the training characters are set aside for validation. The
    alphabet is the super-class that the sampler knows. Grey, 32 x 32 pixels unless `images` says otherwise.

    Source: Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction",
    Science 2015. Licence: MIT.

    Args:
        root: folder to keep it in; 9 MB to download, 150 MB unpacked.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if it is not there and cannot be downloaded.
    """

    def __init__(self, root: str = "data", transforms: ImageTransforms | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms(size=32, resize=32, min_scale=0.6, flip=False, mode="L")

    def prepare_data(self) -> None:
        """Downloads what is not there."""
        for part in PARTS.values():
            if not (self.root / Omniglot.folder / part).exists():
                try:
                    Omniglot(str(self.root), background=part == PARTS["train"], download=True)
                except (OSError, RuntimeError) as error:
                    raise ValueError(f"Cannot download Omniglot to {self.root}: {error}. {SOURCE}") from error

    def read(self) -> dict[str, ImageFiles]:
        """Training and test: ALPHABET/characterNN/*.png of both parts."""
        folders = [require_path(self.root / Omniglot.folder / part, SOURCE) for part in PARTS.values()]
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
