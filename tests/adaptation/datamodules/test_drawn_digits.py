import numpy as np
import pytest

from lightning_recall.adaptation.data.textures import blend
from lightning_recall.adaptation.datamodules import DrawnDigitsDataModule, drawn_digits

SIZES = {"num_train": 40, "num_test": 20}


def test_both_domains():
    data = DrawnDigitsDataModule(**SIZES, batch_size=10, val_fraction=0.25)
    data.check_data()
    data.setup()
    assert (data.num_classes, data.image_size) == (10, 32)
    sizes = {domain: {split: len(part) for split, part in parts.items()} for domain, parts in data.domains.items()}
    assert sizes == {"source": {"train": 30, "val": 10, "test": 20}, "target": {"train": 40, "val": 40, "test": 20}}
    source, target = (data.domains[domain]["test"] for domain in ("source", "target"))
    assert source.images.shape == target.images.shape == (20, 3, 32, 32)
    assert (source.images == source.images[:, :1]).all()  # grey
    assert (source.images[:, :, 0, 0] == 0).all()
    assert (target.images.float().std((1, 2, 3)) > 10).all()
    assert (target.images != target.images[:, :1]).any()
    assert np.bincount(source.labels).tolist() == np.bincount(target.labels).tolist() == [2] * 10


def test_the_target_is_blended(monkeypatch):
    monkeypatch.setattr(drawn_digits, "blend", lambda digits, textures: blend(digits, 0 * textures))
    data = DrawnDigitsDataModule(**SIZES).read()["target"]["test"]
    assert (data.images == data.images[:, :1]).all()
    assert data.images.amax((1, 2, 3)).min() > 100


def test_the_size_of_the_images():
    data = DrawnDigitsDataModule(**SIZES, image_size=28, batch_size=10)
    data.setup()
    for parts in data.domains.values():
        assert {part.images.shape[1:] for part in parts.values()} == {(3, 28, 28)}


def test_brightness_and_contrast_of_the_target():
    def image(**settings):
        return DrawnDigitsDataModule(**SIZES, **settings).read()["target"]["test"].images.float()

    def corner(images):
        return images[:, :, :4, :4].amax((2, 3))  # without strokes

    black, dark, bright = (image(brightness=brightness) for brightness in (0, 0.3, 0.6))
    assert (black == black[:, :1]).all()
    assert not corner(black).any()
    assert (corner(bright) - 2 * corner(dark)).abs().max() <= 2
    plain = image(contrast=0)
    assert (plain[:, :, :4, :4] == plain[:, :, :1, :1]).all()


def test_images_depend_only_on_the_seed():
    first, again, other = (DrawnDigitsDataModule(**SIZES, seed=seed).read() for seed in (0, 0, 1))
    for domain, parts in first.items():
        for split, part in parts.items():
            assert (part.images == again[domain][split].images).all()
            assert (part.images != other[domain][split].images).any()
    assert (first["source"]["train"].images[:20] != first["source"]["test"].images).any()


def test_invalid_settings():
    with pytest.raises(ValueError, match="num_train must be at least 10, got 9"):
        DrawnDigitsDataModule(num_train=9)
    with pytest.raises(ValueError, match="image_size must be at least 8, got 7"):
        DrawnDigitsDataModule(image_size=7)
    with pytest.raises(ValueError, match=r"brightness must be from 0 to 1, got 1\.5"):
        DrawnDigitsDataModule(brightness=1.5)
    with pytest.raises(ValueError, match="contrast must be a finite number of at least 0, got -1"):
        DrawnDigitsDataModule(contrast=-1)
