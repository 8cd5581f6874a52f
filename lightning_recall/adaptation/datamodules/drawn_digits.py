"""Drawn digits: a pair of domains without download."""

from typing import Any, NamedTuple

import numpy as np

from lightning_recall.adaptation.data.drawn_digits import draw_digits
from lightning_recall.adaptation.data.images import DomainArrays
from lightning_recall.adaptation.data.textures import blend, draw_textures
from lightning_recall.adaptation.datamodules.base import AdaptationDataModule
from lightning_recall.checks import check_integer

LEAST_SIZE = 8  # of an image, in pixels: smaller digits cannot be read


class Look(NamedTuple):
    """How a domain looks: its typefaces, and whether its digits are blended with textures."""

    typefaces: tuple[str, ...]
    has_textures: bool


LOOKS = {
    "source": Look(
        ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"), False
    ),
    "target": Look(
        (
            *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
            *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
            *("cmr10", "cmb10", "cmss10", "cmtt10"),
        ),
        True,
    ),
}


class DrawnDigitsDataModule(AdaptationDataModule):
    """Drawn digits: white sans-serif digits on black, and digits of other typefaces over textures; nothing to download.

    Both domains are drawn in the typefaces of matplotlib, in three channels, with small random rotations, shears,
    shifts and scales. The source is in DejaVu Sans and Sans Mono. The target is in DejaVu Serif,
    STIX and Computer Modern, blended with colour textures as MNIST-M is with photos. The gap is real: a `DigitEncoder`
    trained on the source alone recognises almost all test images of the source, but only about half of those of the
    target.

    Images are the same on each machine with the same version of matplotlib, and depend only on `seed`. All classes have
    equally many images, up to one. Drawing takes about two seconds on one core.

    Licence: rendered from the DejaVu fonts (Bitstream Vera licence), the STIX fonts and the Computer Modern fonts of
    BaKoMa; their licences allow free use of images rendered with the fonts.

    Args:
        num_train: training images of each domain, at least 10.
        num_test: test images of each domain, at least 10.
        image_size: height and width in pixels, at least 8; `DANNEncoder` needs 28.
        brightness: factor of the brightness of the textures, from 0 to 1; 0: black. More brightness widens the gap.
        contrast: factor of the contrast of the textures, at least 0; 0: one colour each. More contrast widens the gap.
        kwargs: passed to `AdaptationDataModule`.

    Raises:
        ValueError: for a value out of range.
    """

    class_names = tuple("0123456789")

    def __init__(
        self,
        num_train: int = 2000,
        num_test: int = 1000,
        image_size: int = 32,
        brightness: float = 0.7,
        contrast: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_integer("num_train", num_train, len(self.class_names))
        check_integer("num_test", num_test, len(self.class_names))
        check_integer("image_size", image_size, LEAST_SIZE)
        if not 0 <= brightness <= 1:
            raise ValueError(f"brightness must be from 0 to 1, got {brightness}.")
        if not 0 <= contrast < np.inf:
            raise ValueError(f"contrast must be a finite number of at least 0, got {contrast}.")
        self.sizes = {"train": num_train, "test": num_test}
        self.image_size = image_size
        self.brightness = brightness
        self.contrast = contrast

    def read(self) -> dict[str, dict[str, DomainArrays]]:
        """Draws both domains."""
        return {
            domain: {
                split: self.draw(look, count, np.random.default_rng((self.seed, number, part)))
                for part, (split, count) in enumerate(self.sizes.items())
            }
            for number, (domain, look) in enumerate(LOOKS.items())
        }

    def draw(self, look: Look, count: int, rng: np.random.Generator) -> DomainArrays:
        """Draws the images of a split."""
        labels = np.arange(count) % len(self.class_names)
        digits = draw_digits(look.typefaces, labels, self.image_size, rng)
        if look.has_textures:
            images = blend(digits, draw_textures(count, self.image_size, rng, self.contrast, self.brightness))
        else:
            images = np.repeat(digits[:, None], 3, axis=1)
        return DomainArrays(images, labels, self.class_names)

    def check_data(self) -> None:
        """Does nothing: there are no files."""
