"""Writes small files of digits in their published formats."""

import bz2
import gzip

import numpy as np
from scipy.io import savemat


def digits(count, shape, seed=0):
    """Random images (count, *shape) and labels (count,); each digit occurs."""
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, *shape), dtype=np.uint8), rng.permutation(np.arange(count) % 10)


def write_mnist(root, train, test, packed=False):
    """MNIST/raw/*-idx3-ubyte and *-idx1-ubyte, as .gz if packed."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()
            file = folder / f"{name}-{kind}-ubyte"
            if packed:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)


def write_usps(root, train, test):
    """usps.bz2 and usps.t.bz2: lines "label 1:value 2:value ...", labels from 1, values from -1 to 1."""
    for name, (images, labels) in (("usps.bz2", train), ("usps.t.bz2", test)):
        lines = []
        for image, label in zip(images, labels, strict=True):
            values = image.ravel() / 255 * 2 - 1
            cells = " ".join(f"{number}:{value:.7g}" for number, value in enumerate(values, 1))
            lines.append(f"{label + 1} {cells}\n")
        (root / name).write_bytes(bz2.compress("".join(lines).encode()))


def write_mat(root, names, train, test, zero=0):
    """X (32, 32, 3, N) and y (N, 1); `zero` is the label of the digit 0, 10 in SVHN."""
    for name, (images, labels) in zip(names, (train, test), strict=True):
        y = np.where(labels == 0, zero, labels).astype(np.uint8)[:, None]
        savemat(root / name, {"X": images.transpose(2, 3, 1, 0), "y": y})


def write_npz(file, mnist, usps_train, usps_test):
    """digits.npz."""
    named = {"mnist": mnist, "usps_train": usps_train, "usps_test": usps_test}
    arrays = {f"{name}_images": images for name, (images, _) in named.items()}
    np.savez(file, **arrays, **{f"{name}_labels": labels.astype(np.uint8) for name, (_, labels) in named.items()})
