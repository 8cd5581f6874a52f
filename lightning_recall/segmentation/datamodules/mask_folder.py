"""Your own images and masks in two folders."""

from pathlib import Path
from typing import Any

from lightning_recall.data.folders import SPLIT_OF, is_hidden, split_of
from lightning_recall.data.messages import quote, shorten
from lightning_recall.data.tables import require_path, user_path
from lightning_recall.segmentation.data import SegmentationFiles
from lightning_recall.segmentation.data.classes import mask_classes, values_of
from lightning_recall.segmentation.data.mask_check import MaskSummary
from lightning_recall.segmentation.data.masks import IGNORED_PIXEL
from lightning_recall.segmentation.datamodules.base import SegmentationDataModule
from lightning_recall.segmentation.datamodules.pairs import files_by_stem, pair_by_stem
from lightning_recall.segmentation.datamodules.splits import hold_out

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
SPLITS = ("train", "val", "test")
MASK_FOLDER_ENDINGS = ("_masks", "_labels", "_annotations", "annot")
LAYOUTS = (
    "images/ and masks/; images/train, masks/train, images/val, masks/val, ...; train/images, train/masks, "
    "val/images, val/masks, ...; or train, train_masks, val, val_masks, ..."
)


class MaskFolderDataModule(SegmentationDataModule):
    """Data module for your own images and masks.

    The folder has one of these layouts:

    - `images/` and `masks/`: random images are held out for validation (`val_fraction`) and test (`test_fraction`).
    - `images/train`, `images/val`, `images/test` and the same in `masks/`.
    - `train/images`, `train/masks` and the same in `val` and `test`.
    - `train`, `train_masks` (or `train_labels`, `train_annotations`, `trainannot`) and the same for `val` and `test`.

    Without `val`, random training images are held out for validation. Images in `test` may have no masks; then they are
    only for predict. A folder with only `test/images`, and `test/masks` if there are any, is for test and predict.

    A mask has the name of its image, apart from the suffix and an ending such as `_mask`. Masks are PNG files (or in
    another lossless format) with ids in one channel (8 or 16 bits), a palette, or colours. Masks of 0 and 255 need
    their ids, since 255 is ignored otherwise: `classes={"background": 0, "foreground": 255}`, in the command
    `--data.classes '{background: 0, foreground: 255}'`.

    Args:
        root: the folder; ~ is the home folder.
        classes: names in the order of the ids 0, 1, ...; or a mapping of names to ids or to colours [r, g, b]; or a CSV
            file with the columns name and id or name, r, g and b; or a text file with one name per line. None:
            `classes.csv`, `class_dict.csv` or `classes.txt` in root.
        ignored: ids, colours or names whose pixels are ignored. With ids, 255 is always ignored unless it is a class.
        val_fraction: fraction of the training images held out for validation if there is no folder `val`; 0: none.
        test_fraction: fraction of the images held out for the test if there are no split folders; 0: none.
        kwargs: passed to `SegmentationDataModule`.

    Raises:
        ValueError: if root or the classes are missing or malformed; at setup, if an image has no mask or a mask no
            image, a mask has values that are no class, or training masks hold only one class and 255.
    """

    def __init__(
        self,
        root: str,
        classes: str | list[str] | dict[str, int | tuple[int, int, int]] | None = None,
        ignored: tuple[int | str | tuple[int, int, int], ...] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise ValueError(
                "val_fraction and test_fraction must be at least 0, and together below 1, got "
                f"{val_fraction} and {test_fraction}."
            )
        self.root = require_path(user_path(root), f"Pass a folder with one of these layouts as root: {LAYOUTS}.")
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.classes = mask_classes(values_of(classes, self.root), [as_value(value) for value in ignored or ()])
        self.class_names, self.colors = self.classes.names, self.classes.colors
        self.ignored = ignored or ()

    def read(self) -> dict[str, SegmentationFiles]:
        """Pairs images and masks, and holds out images for validation and test."""
        folders = split_folders(self.root)
        data = {split: self.read_pairs(*pair) for split, pair in folders.items()}
        if "" in data:
            return hold_out(data[""], {"val": self.val_fraction, "test": self.test_fraction}, self.seed, self.root)
        if "train" in data and "val" not in data:
            data |= hold_out(data["train"], {"val": self.val_fraction}, self.seed, self.root)
        return data

    def read_pairs(self, images: Path, masks: Path | None) -> SegmentationFiles:
        """Images and masks of two folders; images without masks if there is only one folder."""
        paths: tuple[list[str], list[str] | None] = sorted(files_by_stem(images, "image").values()), None
        if masks is not None:
            paths = pair_by_stem(images, masks)
        return SegmentationFiles(*paths, self.classes.mask_format, self.class_names, self.transforms)

    def check_summary(self, split: str, summary: MaskSummary) -> None:
        """Raises ValueError if training masks seem to mean a class by 255, which is ignored by default."""
        names, used = self.class_names, summary.pixel_counts.nonzero()[0]
        if split != "train" or len(names) < 2 or len(used) > 1 or not summary.num_ignored:
            return
        if self.colors is None and not self.ignored:  # every ignored pixel has 255
            what = f"only the class {quote(names[used[0]])} and {IGNORED_PIXEL}" if len(used) else f"{IGNORED_PIXEL}"
            raise ValueError(
                f"training: the masks hold {what}, which is ignored unless it is a class. Where {IGNORED_PIXEL} is a "
                f'class, pass the ids: classes={{"background": 0, "foreground": {IGNORED_PIXEL}}}, or --data.classes '
                f"'{{background: 0, foreground: {IGNORED_PIXEL}}}'. If it is not, pass ignored=[{IGNORED_PIXEL}]."
            )


def as_value(value: Any) -> Any:
    """A colour from a config, a list, as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def split_folders(root: Path) -> dict[str, tuple[Path, Path | None]]:
    """Split -> folders of its images and masks; the split "" if there are no split folders. "test" may lack masks.

    Raises:
        ValueError: if root has none of the layouts, or other splits than test without train.
    """
    images, masks = find_folder(root, IMAGE_FOLDERS), find_folder(root, MASK_FOLDERS)
    siblings = sibling_folders(root)
    if siblings:
        found = siblings
    elif images is None and masks is None:
        splits = splits_in(root)
        found = {split: (find_folder(path, IMAGE_FOLDERS), find_folder(path, MASK_FOLDERS)) for split, path in splits}
    elif images is not None and masks is not None:
        mask_splits = dict(splits_in(masks))
        splits = splits_in(images)
        if not splits and not mask_splits:
            return {"": (images, masks)}
        found = {split: (path, mask_splits.get(split)) for split, path in splits}
    else:
        present, missing = ("images", "masks") if masks is None else ("masks", "images")
        raise ValueError(f"{shorten(root)} has a folder of {present}, but none of {missing}. Layouts: {LAYOUTS}.")
    if "train" not in found and set(found) != {"test"}:
        names = ", ".join(quote(path.name) for path in visible_folders(root)) or "no folders"
        raise ValueError(f"{shorten(root)} holds {names}: no training images. Layouts: {LAYOUTS}.")
    complete = {split: (image, mask) for split, (image, mask) in found.items() if image and (mask or split == "test")}
    for split in found:
        if split not in complete:
            raise ValueError(f"{shorten(root)} lacks the images or the masks of {split}. Layouts: {LAYOUTS}.")
    return complete


def splits_in(folder: Path) -> list[tuple[str, Path]]:
    """Pairs (split, folder) of the subfolders that are called like a split.

    Raises:
        ValueError: for two folders of one split, or another folder next to train.
    """
    folders = visible_folders(folder)
    found: dict[str, Path] = {}
    for path in folders:
        split = split_of(path.name)
        if split in found:
            raise ValueError(f"{shorten(folder)} holds {found[split].name} and {path.name}, the same split: keep one.")
        if split in SPLITS:
            found[split] = path
    others = [path.name for path in folders if path not in found.values()]
    if "train" in found and others:
        allowed = ", ".join(name for name, split in SPLIT_OF.items() if split in SPLITS)
        raise ValueError(
            f"{shorten(folder)} holds {found['train'].name} and {quote(others[0])}, which is not a split: {allowed}."
        )
    return [(split, found[split]) for split in SPLITS if split in found]


def sibling_folders(root: Path) -> dict[str, tuple[Path | None, Path | None]]:
    """Split -> folder of images, such as train, and of masks, such as train_masks; empty without masks for train."""
    folders = visible_folders(root)
    found: dict[str, tuple[Path | None, Path | None]] = {}
    for path in folders:
        split = split_of(path.name)
        if split in SPLITS:
            names = tuple(f"{path.name}{ending}" for ending in MASK_FOLDER_ENDINGS)
            found[split] = (path, find_folder(root, names))
    return found if found.get("train", (None, None))[1] else {}


def find_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first subfolder with one of these names, in upper or lower case."""
    names = tuple(name.lower() for name in names)
    by_name = {path.name.lower(): path for path in visible_folders(root)}
    return next((by_name[name] for name in names if name in by_name), None)


def visible_folders(root: Path) -> list[Path]:
    """Subfolders in order, without hidden and system folders."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
