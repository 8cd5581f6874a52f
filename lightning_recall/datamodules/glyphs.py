"""Glyphs: the same character across typefaces, rendered locally without download."""

import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_recall.data import ImagesInMemory
from lightning_recall.data.augment import random_affine
from lightning_recall.data.tables import user_path
from lightning_recall.datamodules.base import RetrievalDataModule

IMAGE_SIZE = 32  # pixels
FONT_SIZE = 24  # pixels per em: most characters fill the image without touching its border
MIN_TYPEFACES = 12  # of 16, so that every class has enough images
TYPEFACES = tuple(
    f"{family}{style}"
    for family, styles in {
        "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
        "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
    }.items()
    for style in styles
)


def draw_glyphs() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Renders every letter, number and symbol that at least 12 of matplotlib's 16 typefaces contain.

    Characters that are blank, or that render identically to an earlier one in some typeface (Greek Alpha and Latin A),
    are excluded.

    Returns:
        Images (N, 32, 32) uint8, white on black, and labels (N,) int64: the characters' code points, in ascending
        order.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [str(folder / f"{name}.ttf") for name in TYPEFACES]
    charmaps = [set(FT2Font(path).get_charmap()) for path in paths]
    fonts = [ImageFont.truetype(path, FONT_SIZE) for path in paths]
    counts = Counter(code for charmap in charmaps for code in charmap)
    frequent = [code for code, count in sorted(counts.items()) if count >= MIN_TYPEFACES]
    codes = [code for code in frequent if unicodedata.category(chr(code))[0] in "LNS"]  # letters, numbers, symbols

    seen: set[tuple[int, bytes]] = set()  # (typeface, bitmap)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for code in codes:
        drawn = {i: draw(chr(code), fonts[i]) for i, charmap in enumerate(charmaps) if code in charmap}
        keys = {(i, image.tobytes()) for i, image in drawn.items()}
        if not keys & seen and all(image.any() for image in drawn.values()):
            images += drawn.values()
            labels += [code] * len(drawn)
        seen |= keys
    return np.stack(images), np.array(labels, dtype=np.int64)


def draw(character: str, font: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    """Renders one character at the centre of a black image, (32, 32) uint8."""
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    ImageDraw.Draw(image).text((IMAGE_SIZE / 2, IMAGE_SIZE / 2), character, fill=255, font=font, anchor="mm")
    return np.asarray(image)


class GlyphsDataModule(RetrievalDataModule):
    """Glyphs: 27,656 images (32 x 32, greyscale) of 2,055 characters; retrieves images of the same character.

    The images are rendered from the 16 typefaces in matplotlib (DejaVu Sans, Sans Mono and Serif, and STIX, in four
    styles each) in about two seconds, and cached in the user's cache folder.

    Test: every second character (1,028 classes); each image is a query against all others. Train: the other 1,027
    classes. `val_classes` sets how many of them are held out for validation. The counts hold for matplotlib 3.8 to
    3.11.

    Licence: rendered from the DejaVu fonts (Bitstream Vera licence) and the STIX fonts (their user licence); both
    licences allow free use of images rendered with the fonts.

    Args:
        root: folder of the cached images; None: lightning_recall/ in $XDG_CACHE_HOME, or in ~/.cache.
        augment: whether each training image is slightly rotated, sheared, scaled and shifted at random.
        check_duplicates: whether setup reports exact copies. One in four images duplicates another image of the same
            character, since many symbols look the same in several styles of a family; images of different characters
            always differ.
        kwargs: passed to `RetrievalDataModule`.
    """

    def __init__(
        self, root: str | None = None, augment: bool = True, check_duplicates: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(check_duplicates=check_duplicates, **kwargs)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_recall"
        self.file = user_path(root or cache) / f"glyphs_matplotlib_{matplotlib.__version__}.npz"
        self.augment = augment

    def prepare_data(self) -> None:
        """Renders the images unless they are cached."""
        if self.file.exists():
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"Cannot write the glyph cache to {self.file.parent}: choose another root. ({error})"
            ) from error
        images, labels = draw_glyphs()
        # Writes to a temporary file, so that an interruption leaves no partial file.
        unfinished = self.file.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(unfinished, images=images, labels=labels)
        unfinished.replace(self.file)

    def read(self) -> dict[str, ImagesInMemory]:
        """Splits the characters: every second one is for the test."""
        with np.load(self.file) as arrays:
            images, labels = arrays["images"][:, None], arrays["labels"]  # (N, 1, 32, 32), (N,)
        _, character = np.unique(labels, return_inverse=True)
        data = ImagesInMemory(images, labels)
        return {"train": data.select(character % 2 == 1), "test": data.select(character % 2 == 0)}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments a training batch, chunk by chunk, on the device."""
        if not (self.augment and self.trainer and self.trainer.training):
            return batch
        augmented: list[tuple[Tensor, Tensor]] = [(random_affine(images), labels) for images, labels in batch]
        return augmented
