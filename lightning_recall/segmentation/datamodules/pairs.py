"""Finds the mask of each image by its name."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from lightning_recall.data.folders import image_suffixes, is_hidden
from lightning_recall.data.messages import pluralize, shorten

MASK_ENDINGS = (
    *("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_annot", "_annotation", "_L"),
    *("-mask", "-label", "_gtFine_labelIds", "_gtFine_labelTrainIds"),
)
"""endings by which masks may differ from their images, besides the suffix"""


def pair_by_stem(images: Path, masks: Path) -> tuple[list[str], list[str]]:
    """Sorted image files and their masks: files with the same name up to the suffix, in the same subfolder.

    Masks may also have one of `MASK_ENDINGS` before the suffix. Hidden and system files are ignored.

    Args:
        images: folder of images.
        masks: folder of masks, in PNG or another lossless format.

    Raises:
        ValueError: if a folder has no images, two files have the same stem, or a mask or an image is missing.
    """
    image_of, mask_of = files_by_stem(images, "image"), files_by_stem(masks, "mask")
    if not set(image_of) & set(mask_of):
        mask_of = without_endings(mask_of)
    for name, missing, folder, other in (
        ("mask", sorted(set(image_of) - set(mask_of)), masks, image_of),
        ("image", sorted(set(mask_of) - set(image_of)), images, mask_of),
    ):
        if missing:
            counterpart = "image" if name == "mask" else "mask"
            unused = sorted(set(mask_of) - set(image_of)) if name == "mask" else []
            found = f", but found {shorten(mask_of[unused[0]])}" if unused else ""
            rule = " Masks may have an ending such as _mask, if all of them have it." if unused else ""
            raise ValueError(
                f"{shorten(folder)} holds no {name} for {pluralize(len(missing), counterpart)} of {len(other):,}, such "
                f"as {shorten(other[missing[0]])}: expected {shorten(missing[0])}{'.png' if name == 'mask' else '.jpg'}"
                f" or another suffix{found}. Add or rename the file, or remove its counterpart.{rule}"
            )
    stems = sorted(image_of)
    return [image_of[stem] for stem in stems], [mask_of[stem] for stem in stems]


def files_by_stem(folder: Path, name: str) -> dict[str, str]:
    """Stem relative to the folder -> path of each image file in it and its subfolders.

    Raises:
        ValueError: if there is none, or two files have the same stem.
    """
    found: dict[str, str] = {}
    others = 0
    for path in visible_files(folder):
        relative, suffix = os.path.splitext(os.path.relpath(path, folder))
        if suffix.lower() not in image_suffixes():
            others += 1
            continue
        relative = unicodedata.normalize("NFC", relative)  # macOS writes the same letters in another form
        if relative in found:
            raise ValueError(
                f"{shorten(folder)} holds two {name}s of one name, {os.path.basename(found[relative])} and "
                f"{os.path.basename(path)}: keep one."
            )
        found[relative] = path
    if not found:
        besides = f"; it holds {pluralize(others, 'other file')}" if others else ""
        raise ValueError(f"{shorten(folder)} holds no {name}, such as a .png file{besides}.")
    return found


def without_endings(files: dict[str, str]) -> dict[str, str]:
    """Removes an ending that all stems share, such as "_mask"."""
    for ending in MASK_ENDINGS:
        if all(stem.endswith(ending) for stem in files):
            return {stem.removesuffix(ending): path for stem, path in files.items()}
    return files


def visible_files(folder: Path) -> Iterable[str]:
    """Files of a folder and its subfolders, in order, without hidden and system files."""
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (os.path.join(path, file) for file in sorted(files) if not is_hidden(file))
