import re

import numpy as np
import pytest
from digit_data import digits, write_mat, write_mnist, write_npz, write_usps

from lightning_recall.adaptation.data import digit_files
from lightning_recall.adaptation.data.digit_files import SVHN_FILES, SYN_FILES, download_digits, read_digits, read_npz

SHAPES = {"mnist": (28, 28), "usps": (16, 16), "svhn": (3, 32, 32), "syn": (3, 32, 32)}
WRITERS = {
    "mnist": write_mnist,
    "packed": lambda *args: write_mnist(*args, packed=True),
    "usps": write_usps,
    "svhn": lambda root, *splits: write_mat(root, SVHN_FILES.values(), *splits, zero=10),
    "syn": lambda root, *splits: write_mat(root, SYN_FILES.values(), *splits),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_published_formats(tmp_path, kind):
    name = "mnist" if kind == "packed" else kind
    train, test = digits(12, SHAPES[name]), digits(11, SHAPES[name], seed=1)
    WRITERS[kind](tmp_path, train, test)
    for split, (images, labels) in (("train", train), ("test", test)):
        read = read_digits(name, tmp_path, split)
        assert read.images.dtype == np.uint8
        assert read.images.shape == images.shape
        # torchvision cuts the decimals of USPS
        assert np.abs(read.images.astype(int) - images).max() <= (1 if name == "usps" else 0)
        assert read.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("kind", WRITERS)
def test_missing_and_broken_files(tmp_path, kind):
    name = "mnist" if kind == "packed" else kind
    with pytest.raises(ValueError, match=r"does not exist.*(download=True|cannot be downloaded automatically)"):
        read_digits(name, tmp_path, "train")
    WRITERS[kind](tmp_path, digits(12, SHAPES[name]), digits(11, SHAPES[name]))
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot be read \(.*replace the file"):
        read_digits(name, tmp_path, "train")


def test_images_and_labels_of_different_numbers(tmp_path):
    write_mnist(tmp_path, digits(12, (28, 28)), digits(11, (28, 28)), packed=True)
    other = tmp_path / "other"
    write_mnist(other, digits(10, (28, 28)), digits(11, (28, 28)), packed=True)
    name = "MNIST/raw/train-labels-idx1-ubyte.gz"
    (tmp_path / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match="has 12 images, but 10 labels"):
        read_digits("mnist", tmp_path, "train")


def test_downloads_pass_on(tmp_path, monkeypatch):
    calls = []
    for name in ("MNIST", "USPS", "SVHN"):

        def fake(root, *args, name=name, **kwargs):
            return calls.append((name, root, *args, kwargs))

        monkeypatch.setattr(digit_files, name, fake)
    for name in ("mnist", "usps", "svhn", "syn"):
        download_digits(name, tmp_path)
    root = str(tmp_path)
    assert calls == [
        ("MNIST", root, {"train": True, "download": True}),
        ("MNIST", root, {"train": False, "download": True}),
        ("USPS", root, {"train": True, "download": True}),
        ("USPS", root, {"train": False, "download": True}),
        ("SVHN", root, "train", {"download": True}),
        ("SVHN", root, "test", {"download": True}),
    ]

    def fail(*args, **kwargs):  # noqa: ARG001  # takes what the real one takes
        raise RuntimeError("no network")

    monkeypatch.setattr(digit_files, "USPS", fail)
    with pytest.raises(ValueError, match=r"Cannot download usps to .*no network"):
        download_digits("usps", tmp_path)


def test_npz(tmp_path):
    file = tmp_path / "digits.npz"
    parts = digits(12, (28, 28)), digits(11, (16, 16)), digits(10, (16, 16), seed=2)
    write_npz(file, *parts)
    mnist, usps = read_npz(file, "mnist"), read_npz(file, "usps")
    assert list(mnist) == ["train"]
    assert list(usps) == ["train", "test"]
    for read, (images, labels) in zip((mnist["train"], *usps.values()), parts, strict=True):
        assert (read.images == images).all()
        assert read.labels.dtype == np.int64
        assert (read.labels == labels).all()


def test_errors_of_an_npz_file(tmp_path):
    file = tmp_path / "digits.npz"
    with pytest.raises(ValueError, match="does not exist"):
        read_npz(file, "mnist")
    with pytest.raises(ValueError, match=re.escape("A .npz file holds mnist and usps, not svhn")):
        read_npz(file, "svhn")
    file.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="cannot be read"):
        read_npz(file, "mnist")
    np.savez(file, mnist_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="has no array 'mnist_labels': it needs mnist_images, mnist_labels"):
        read_npz(file, "mnist")
    np.savez(file, mnist_images=np.zeros((2, 784)), mnist_labels=np.zeros(2))
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(N, H, W\), got float64 \(2, 784\)"):
        read_npz(file, "mnist")
