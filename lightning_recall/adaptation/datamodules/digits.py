"""Digits of two of MNIST, USPS, SVHN, SYN digits and MNIST-M."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as tv

from lightning_recall.adaptation.data.digit_files import (
    SPLITS,
    Digits,
    DigitsName,
    digit_file,
    download_digits,
    read_digits,
    read_npz,
)
from lightning_recall.adaptation.data.images import DomainArrays
from lightning_recall.adaptation.data.mnist_m import list_photos, make_mnist_m
from lightning_recall.adaptation.datamodules.base import AdaptationDataModule
from lightning_recall.checks import check_integer
from lightning_recall.data.messages import shorten
from lightning_recall.data.tables import require_path, user_path

NAMES: tuple[str, ...] = get_args(DigitsName)
SAMPLED = {"mnist": 2000, "usps": 1800}
"""images that the sampled protocol draws"""
DRAW_KEY = 1803  # seeds the draws, together with the number of the draw
CHUNK = 5000  # images resized at a time, which bounds the memory


class DigitsAdaptationDataModule(AdaptationDataModule):
    """Digits 0 to 9 of two domains, as 32 x 32 images with three channels.

    The domains, with their published training and test images:

    - "mnist": handwriting, 28 x 28, 60,000 and 10,000 images. LeCun et al., 1998.
    - "usps": handwriting on envelopes, 16 x 16, 7,291 and 2,007 images. Hull, PAMI 1994.
    - "svhn": house numbers in colour, 32 x 32, 73,257 and 26,032 images. Netzer et al., 2011; non-commercial use.
    - "syn": synthetic digits in colour, 32 x 32, 479,400 and 9,553 images. Ganin and Lempitsky, ICML 2015.
    - "mnistm": MNIST-M, made here from MNIST: each image is the absolute difference of a digit and a patch of a photo,
      as in Ganin et al., JMLR 2016, who take the photos of BSDS500. Without `photos`, patches are drawn textures, and
      the images are not the published ones: compare results only with each other.

    `root` is the folder of torchvision's data sets, with the files `MNIST/raw/train-images-idx3-ubyte` (also .gz), ...,
    `usps.bz2`, `usps.t.bz2`, `train_32x32.mat` and `test_32x32.mat` of SVHN, `synth_train_32x32.mat` and
    `synth_test_32x32.mat`. Reading .mat files needs scipy (`pip install scipy`). Or it is a file `digits.npz` with the
    uint8 arrays `mnist_images` and `mnist_labels`, `usps_train_images`, `usps_train_labels`, `usps_test_images` and
    `usps_test_labels`.

    Protocols:

    - "sampled", for MNIST and USPS (Long et al., ICCV 2013; CoGAN, ADDA): 2,000 images of MNIST and 1,800 of USPS are
      drawn for training. The test images are those of MNIST (with a .npz file: all that are not drawn) and of USPS.
    - "full": the published training and test images. A .npz file has no test images of MNIST: a fifth is drawn.

    The literature trains on all drawn images of the source and reports the last epoch: for that, set
    `val_fraction` to 0.

    Args:
        root: folder, or .npz file; ~ is the home folder.
        source: the domain with labels.
        target: the domain whose labels are used for scores only.
        image_size: height and width in pixels, by bilinear resizing with antialiasing.
        protocol: "sampled" or "full".
        draw: number of the draw of images, and of patches of MNIST-M, at least 0.
        photos: folder of colour photos for MNIST-M; None: textures are drawn.
        download: whether missing files of MNIST, USPS and SVHN are downloaded.
        kwargs: passed to `AdaptationDataModule`.

    Raises:
        ValueError: for an unknown or repeated domain, a protocol that is not defined for the domains, or missing or
            broken files.
        ImportError: if scipy is needed and not installed.
    """

    class_names = tuple("0123456789")

    def __init__(
        self,
        root: str,
        source: DigitsName = "mnist",
        target: DigitsName = "usps",
        image_size: int = 32,
        protocol: Literal["sampled", "full"] = "sampled",
        draw: int = 0,
        photos: str | None = None,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_integer("image_size", image_size, 1)
        check_integer("draw", draw, 0)
        for name, value in (("source", source), ("target", target)):
            if value not in NAMES:
                raise ValueError(f"{name} must be one of {', '.join(NAMES)}, got {value!r}.")
        if source == target:
            raise ValueError(f"source and target must differ, got {source!r} twice.")
        if protocol not in ("sampled", "full"):
            raise ValueError(f'protocol must be "sampled" or "full", got {protocol!r}.')
        other = [name for name in (source, target) if name not in SAMPLED]
        if protocol == "sampled" and other:
            raise ValueError(f'protocol="sampled" is for mnist and usps, not for {other[0]}: set protocol="full".')
        self.root = user_path(root)
        self.source, self.target = source, target
        self.image_size = int(image_size)
        self.protocol, self.draw, self.photos, self.download = protocol, draw, photos, download

    @property
    def is_npz(self) -> bool:
        """Whether root is a .npz file."""
        return self.root.suffix == ".npz"

    def prepare_data(self) -> None:
        """Downloads missing files, if `download`."""
        for name in {file_name(self.source), file_name(self.target)} if self.download and not self.is_npz else ():
            download_digits(name, self.root)

    def check_data(self) -> None:
        """Checks that the files exist, unless they may be downloaded."""
        if "mnistm" in (self.source, self.target) and self.photos is not None:
            list_photos(user_path(self.photos))
        if self.is_npz:
            require_path(self.root, "Pass a .npz file, or a folder of torchvision's files, as root.")
            return
        for name in (self.source, self.target):
            for split in SPLITS if not self.download or name == "syn" else ():
                digit_file(file_name(name), self.root, split)

    def read(self) -> dict[str, dict[str, DomainArrays]]:
        """Reads both domains, and draws images for the protocol."""
        digits: dict[str, dict[str, Digits]] = {
            name: self.read_splits(file_name(name)) for name in (self.source, self.target)
        }
        try:
            digits = draw_sample(digits, self.draw) if self.protocol == "sampled" else hold_out_tests(digits, self.draw)
        except ValueError as error:
            raise ValueError(f"{shorten(self.root)}: {error}") from None
        return {
            domain: {split: self.images_of(name, split, part) for split, part in digits[name].items()}
            for domain, name in (("source", self.source), ("target", self.target))
        }

    def read_splits(self, name: str) -> dict[str, Digits]:
        """Training and test digits of "mnist", "usps", "svhn" or "syn"; a .npz file has no test digits of MNIST."""
        if self.is_npz:
            return read_npz(self.root, name)
        return {split: read_digits(name, self.root, split) for split in SPLITS}

    def images_of(self, name: str, split: str, digits: Digits) -> DomainArrays:
        """The data set of a split, blended with patches for MNIST-M."""
        images = digits.images
        if name == "mnistm":
            rng = np.random.default_rng((DRAW_KEY, self.draw, SPLITS.index(split)))
            images = make_mnist_m(images, self.photos, rng)
        return DomainArrays(resized(images, self.image_size), digits.labels, self.class_names)


def file_name(name: str) -> str:
    """The domain whose files hold the digits of a domain: MNIST for MNIST-M."""
    return "mnist" if name == "mnistm" else name


def draw_sample(digits: dict[str, dict[str, Digits]], draw: int) -> dict[str, dict[str, Digits]]:
    """Draws the training images of the sampled protocol; those not drawn are for the test if there is no other test.

    Args:
        digits: "mnist" and "usps" -> "train", and "test" if there are test images.
        draw: number of the draw.

    Raises:
        ValueError: if there are too few images.
    """
    rng, drawn = np.random.default_rng((DRAW_KEY, draw)), {}
    for name, size in SAMPLED.items():
        train, count = digits[name]["train"], len(digits[name]["train"].images)
        needed = size if "test" in digits[name] else size + 1
        if count < needed:
            raise ValueError(
                f'protocol="sampled" needs at least {needed:,} training images of {name}, but there are {count:,}: set '
                'protocol="full", or use the whole data set.'
            )
        order = rng.permutation(count)
        rest = digits[name].get("test") or take(train, order[size:])
        drawn[name] = {"train": take(train, order[:size]), "test": rest}
    return drawn


def hold_out_tests(digits: dict[str, dict[str, Digits]], draw: int) -> dict[str, dict[str, Digits]]:
    """Draws a fifth of the images of each domain that has no test images for the test."""
    whole = {}
    for name, parts in digits.items():
        order = np.random.default_rng((DRAW_KEY, draw)).permutation(len(parts["train"].images))
        size = len(order) // 5
        whole[name] = (
            parts
            if "test" in parts
            else {"train": take(parts["train"], order[size:]), "test": take(parts["train"], order[:size])}
        )
    return whole


def take(digits: Digits, indices: NDArray[np.int64]) -> Digits:
    """Some of the digits, in this order."""
    return Digits(digits.images[indices], digits.labels[indices])


def resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images (N, H, W) or (N, 3, H, W) as (N, 3, size, size) uint8, resized bilinearly with antialiasing."""
    whole = np.empty((len(images), 3, size, size), dtype=np.uint8)
    for start in range(0, len(images), CHUNK):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + CHUNK]))
        part = part[:, None] if part.ndim == 3 else part
        whole[start : start + CHUNK] = tv.resize(part, [size, size], antialias=True).numpy()  # broadcasts grey to RGB
    return whole
