import numpy as np
import pytest
import torch
from digit_data import digits, write_mat, write_mnist, write_npz, write_usps
from torchvision.transforms.v2 import functional as tv

from lightning_recall.adaptation.data.digit_files import SVHN_FILES, SYN_FILES
from lightning_recall.adaptation.data.mnist_m import make_mnist_m
from lightning_recall.adaptation.datamodules import DigitsAdaptationDataModule
from lightning_recall.adaptation.datamodules import digits as digits_module


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """A file with just enough images for the sampled protocol."""
    file = tmp_path_factory.mktemp("npz") / "digits.npz"
    write_npz(file, digits(2040, (28, 28)), digits(1830, (16, 16), 1), digits(20, (16, 16), 2))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small files of all published formats."""
    root = tmp_path_factory.mktemp("digits")
    for number, write in enumerate((write_mnist, write_usps)):
        shape = (28, 28) if number == 0 else (16, 16)
        write(root, digits(60, shape, number), digits(30, shape, number + 9))
    write_mat(root, SVHN_FILES.values(), digits(50, (3, 32, 32), 3), digits(20, (3, 32, 32), 4), zero=10)
    write_mat(root, SYN_FILES.values(), digits(40, (3, 32, 32), 5), digits(20, (3, 32, 32), 6))
    return root


def ready(*args, **kwargs):
    data = DigitsAdaptationDataModule(*args, **{"val_fraction": 0, "batch_size": 10, **kwargs})
    data.check_data()
    data.prepare_data()
    data.setup()
    return data


def resized(image):
    """A grey image (H, W) as (3, 32, 32)."""
    small = tv.resize(torch.from_numpy(image)[None, None], [32, 32], antialias=True)[0, 0]
    return torch.stack([small, small, small])


@pytest.mark.parametrize(("source", "draw"), [("mnist", 0), ("usps", 3)])
def test_the_sampled_protocol_draws_the_images_of_the_study(npz, source, draw):
    """A transcription of the draw by loops."""
    target = {"mnist": "usps", "usps": "mnist"}[source]
    data = ready(str(npz), source, target, draw=draw)
    with np.load(npz) as file:
        arrays = dict(file)
    rng = np.random.default_rng((1803, draw))
    order = rng.permutation(2040)
    chosen = rng.permutation(1830)
    expected = {
        "mnist": {"train": ("mnist", order[:2000]), "test": ("mnist", order[2000:])},
        "usps": {"train": ("usps_train", chosen[:1800]), "test": ("usps_test", np.arange(20))},
    }
    for domain, name in (("source", source), ("target", target)):
        for split, (prefix, indices) in expected[name].items():
            part = data.domains[domain]["val" if (domain, split) == ("target", "train") else split]
            assert part.labels.tolist() == arrays[f"{prefix}_labels"][indices].tolist()
            assert len(part.images) == len(indices)
            for position in (0, 1, len(indices) // 2, len(indices) - 1):
                assert torch.equal(part.images[position], resized(arrays[f"{prefix}_images"][indices[position]]))
    assert torch.equal(data.domains["target"]["train"].images, data.domains["target"]["val"].images)


def test_validation_images_are_taken_from_the_sample(npz):
    whole, split = ready(str(npz)), ready(str(npz), val_fraction=0.1)
    source = split.domains["source"]
    assert len(source["val"]) == 200
    both = torch.cat([source["train"].images, source["val"].images]).flatten(1)
    all_rows = whole.domains["source"]["train"].images.flatten(1)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, all_rows.numpy()))


def test_the_full_protocol_of_a_npz_file(npz):
    data = ready(str(npz), "usps", "mnist", protocol="full")
    sizes = {domain: {split: len(part) for split, part in parts.items()} for domain, parts in data.domains.items()}
    assert sizes == {"source": {"train": 1830, "test": 20}, "target": {"train": 1632, "test": 408, "val": 1632}}
    target = torch.cat([data.domains["target"][split].images for split in ("train", "test")])
    assert len(torch.unique(target.flatten(1)[:, ::37], dim=0)) == 2040


@pytest.mark.parametrize(
    ("source", "target", "sizes"),
    [
        ("mnist", "usps", [(60, 30), (60, 30)]),
        ("svhn", "mnist", [(50, 20), (60, 30)]),
        ("syn", "svhn", [(40, 20), (50, 20)]),
        ("mnist", "mnistm", [(60, 30), (60, 30)]),
    ],
)
def test_published_files(folder, source, target, sizes):
    data = ready(str(folder), source, target, protocol="full")
    found = [tuple(len(data.domains[domain][split]) for split in ("train", "test")) for domain in ("source", "target")]
    assert found == sizes
    batch = next(iter(data.train_dataloader()))
    assert batch["source"][0].shape == batch["target"].shape == (10, 3, 32, 32)
    assert batch["source"][0].dtype == torch.uint8
    assert {int(label) for _, labels in data.test_dataloader()["target"] for label in labels} == set(range(10))


def test_colour_images_of_the_size_are_not_changed(folder):
    images, labels = digits(20, (3, 32, 32), 4)
    test = ready(str(folder), "svhn", "mnist", protocol="full").domains["source"]["test"]
    assert (test.images.numpy() == images).all()
    assert test.labels.tolist() == labels.tolist()
    small = ready(str(folder), "svhn", "mnist", protocol="full", image_size=28)
    assert small.image_size == 28
    expected = tv.resize(torch.from_numpy(images), [28, 28], antialias=True)
    assert torch.equal(small.domains["source"]["test"].images, expected)


def test_mnist_m_is_made_from_mnist(folder):
    def build(draw=0, seed=0):
        return ready(str(folder), "mnist", "mnistm", protocol="full", draw=draw, seed=seed)

    target = build().domains["target"]
    images, labels = digits(30, (28, 28), 9)
    expected = make_mnist_m(images, None, np.random.default_rng((1803, 0, 1)))
    expected = tv.resize(torch.from_numpy(expected), [32, 32], antialias=True)
    assert torch.equal(target["test"].images, expected)
    assert target["test"].labels.tolist() == labels.tolist()
    assert torch.equal(build(seed=1).domains["target"]["test"].images, expected)
    assert not torch.equal(build(draw=1).domains["target"]["test"].images, expected)


def test_invalid_settings(folder, npz, tmp_path):
    for args, kwargs, message in (
        (("mnist", "mnist"), {}, "source and target must differ, got 'mnist' twice"),
        (("mnist", "emnist"), {}, "target must be one of mnist, usps, svhn, syn, mnistm, got 'emnist'"),
        (("mnist", "svhn"), {}, 'protocol="sampled" is for mnist and usps, not for svhn: set protocol="full"'),
        (("mnist", "usps"), {"protocol": "half"}, 'protocol must be "sampled" or "full", got \'half\''),
        (("mnist", "usps"), {"draw": -1}, "draw must be at least 0"),
        (("mnist", "usps"), {"image_size": 0}, "image_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DigitsAdaptationDataModule(str(folder), *args, **kwargs)
    with pytest.raises(
        ValueError, match=r'protocol="sampled" needs at least 2,000 training images of mnist, .* are 60'
    ):
        ready(str(folder))
    with pytest.raises(ValueError, match=r"A .npz file holds mnist and usps, not syn"):
        ready(str(npz), "mnist", "syn", protocol="full")
    for root in (tmp_path, tmp_path / "digits.npz"):
        with pytest.raises(ValueError, match=r"does not exist.*(Set download=True|Pass a .npz file)"):
            DigitsAdaptationDataModule(str(root)).check_data()
    DigitsAdaptationDataModule(str(tmp_path), download=True).check_data()  # they may still be downloaded
    with pytest.raises(ValueError, match="SYN digits cannot be downloaded"):
        DigitsAdaptationDataModule(str(tmp_path), "syn", "mnist", protocol="full", download=True).check_data()
    with pytest.raises(ValueError, match="photos is a folder of colour photos"):
        DigitsAdaptationDataModule(str(folder), "mnist", "mnistm", protocol="full", photos="missing").check_data()


def test_downloads(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lightning_recall.adaptation.datamodules.digits.download_digits", lambda name, root: calls.append((name, root))
    )
    DigitsAdaptationDataModule(str(tmp_path), "svhn", "mnistm", protocol="full").prepare_data()
    assert calls == []
    DigitsAdaptationDataModule(str(tmp_path), "svhn", "mnistm", protocol="full", download=True).prepare_data()
    assert sorted(calls) == [("mnist", tmp_path), ("svhn", tmp_path)]


def test_images_are_resized_in_parts(npz, monkeypatch):
    whole = ready(npz, image_size=14).domains["target"]["test"].images
    monkeypatch.setattr(digits_module, "CHUNK", 7)
    assert torch.equal(ready(npz, image_size=14).domains["target"]["test"].images, whole)
    assert len(whole.unique(dim=0)) > 10
