"""Reads the digits of MNIST, USPS, SVHN and SYN from their published files, or from one .npz file."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import MNIST, SVHN, USPS

from lightning_recall.checks import first_line
from lightning_recall.data.messages import quote, shorten
from lightning_recall.data.tables import require_path

DigitsName = Literal["mnist", "usps", "svhn", "syn", "mnistm"]
SPLITS = ("train", "test")
MNIST_FILES = {"train": "train", "test": "t10k"}
USPS_FILES = {"train": "usps.bz2", "test": "usps.t.bz2"}
SVHN_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
SYN_FILES = {"train": "synth_train_32x32.mat", "test": "synth_test_32x32.mat"}
NPZ_ARRAYS = {"mnist": ("mnist",), "usps": ("usps_train", "usps_test")}
"""domain -> prefixes of its arrays PREFIX_images and PREFIX_labels: training, and test if there is one"""
DOWNLOAD = "Set download=True, or put the file there."
SYN_SOURCE = (
    "SYN digits cannot be downloaded automatically: take the .mat files from http://yaroslav.ganin.net (Ganin and "
    "Lempitsky, ICML 2015) and put them in root."
)


class Digits(NamedTuple):
    """Images (N, H, W) or (N, 3, H, W) uint8, and labels (N,) from 0 to 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_digits(name: str, root: Path, split: str) -> Digits:
    """Reads a published split.

    Args:
        name: "mnist", "usps", "svhn" or "syn".
        root: the folder of torchvision's data sets: MNIST/raw/, usps.bz2, train_32x32.mat, ...; the files of SYN digits
            are in the same folder.
        split: "train" or "test".

    Raises:
        ValueError: if a file is missing or broken.
        ImportError: if scipy is needed and not installed.
    """
    file = digit_file(name, root, split)
    readers: dict[str, Callable[[Path, str], Digits]] = {"mnist": read_mnist, "usps": read_usps}
    try:
        digits = readers[name](root, split) if name in readers else read_mat(file)
    except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"{shorten(file)} cannot be read ({first_line(error)}): replace the file.") from error
    if len(digits.images) != len(digits.labels):
        raise ValueError(
            f"{shorten(file)} has {len(digits.images):,} images, but {len(digits.labels):,} labels: replace the file."
        )
    return digits


def digit_file(name: str, root: Path, split: str) -> Path:
    """Path of the images of a split.

    Raises:
        ValueError: if the file does not exist.
    """
    if name == "mnist":
        plain = root / "MNIST" / "raw" / f"{MNIST_FILES[split]}-images-idx3-ubyte"
        packed = plain.with_name(f"{plain.name}.gz")
        return packed if packed.exists() and not plain.exists() else require_path(plain, DOWNLOAD)
    files = {"usps": USPS_FILES, "svhn": SVHN_FILES, "syn": SYN_FILES}[name]
    return require_path(root / files[split], SYN_SOURCE if name == "syn" else DOWNLOAD)


def download_digits(name: str, root: Path) -> None:
    """Downloads both splits, if they are missing; nothing for SYN digits.

    Raises:
        ValueError: if the download fails.
    """
    try:
        for split in SPLITS:
            if name == "svhn":
                SVHN(str(root), split, download=True)
            elif name in ("mnist", "usps"):
                (MNIST if name == "mnist" else USPS)(str(root), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Cannot download {name} to {shorten(root)}: {first_line(error)}.") from error


def read_mnist(root: Path, split: str) -> Digits:
    """Reads MNIST by torchvision, or from the packed IDX files (.gz)."""
    file = digit_file("mnist", root, split)
    if file.suffix == ".gz":
        return Digits(read_idx(file), read_idx(file.with_name(file.name.replace("images-idx3", "labels-idx1"))))
    data = MNIST(str(root), train=split == "train")
    return Digits(data.data.numpy(), data.targets.numpy())


def read_idx(file: Path) -> NDArray[Any]:
    """The array of a packed IDX file of bytes: two zeros, a type, the number of dimensions, the dimensions, values."""
    with gzip.open(file) as packed:
        content = packed.read()
    num_dimensions = content[3]
    shape = np.frombuffer(content, ">i4", num_dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def read_usps(root: Path, split: str) -> Digits:
    """Reads USPS by torchvision: rows of 256 grey values in LIBSVM's format."""
    data = USPS(str(root), train=split == "train")
    return Digits(np.asarray(data.data), np.asarray(data.targets))


def read_mat(file: Path) -> Digits:
    """Reads X (32, 32, 3, N) and y (N, 1) of the .mat files of SVHN and SYN digits. SVHN labels the digit 0 as 10."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"Reading {file} needs scipy: pip install scipy") from error
    content = loadmat(str(file))
    return Digits(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)), content["y"].ravel().astype(np.int64) % 10)


def read_npz(file: Path, name: str) -> dict[str, Digits]:
    """Reads MNIST or USPS from one file; see `NPZ_ARRAYS`.

    Returns:
        Digits of "train", and of "test" if the file has them.

    Raises:
        ValueError: if the file is missing or broken, lacks an array, or the domain cannot be in such a file.
    """
    if name not in NPZ_ARRAYS:
        raise ValueError(f"A .npz file holds mnist and usps, not {name}: pass a folder of torchvision's files as root.")
    require_path(file, f"Pass a .npz file, or a folder of torchvision's files, as root. {DOWNLOAD}")
    names = [f"{prefix}_{kind}" for prefix in NPZ_ARRAYS[name] for kind in ("images", "labels")]
    try:
        with np.load(file) as arrays:
            missing = [each for each in names if each not in arrays]
            values = [] if missing else [arrays[each] for each in names]
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise ValueError(f"{shorten(file)} cannot be read ({first_line(error)}): replace the file.") from error
    if missing:
        raise ValueError(f"{shorten(file)} has no array {quote(missing[0])}: it needs {', '.join(names)}.")
    pairs = zip(values[::2], values[1::2], strict=True)
    parts = [Digits(checked(file, images), labels.astype(np.int64)) for images, labels in pairs]
    return dict(zip(SPLITS, parts, strict=False))


def checked(file: Path, images: NDArray[Any]) -> NDArray[np.uint8]:
    """The images, if they are uint8 of shape (N, H, W); otherwise raises ValueError."""
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(
            f"{shorten(file)}: images must be uint8 of shape (N, H, W), got {images.dtype} {images.shape}."
        )
    return images
