import logging

import numpy as np
import pytest
import torch
from torch import nn

from lightning_recall.adaptation.data import DomainArrays
from lightning_recall.adaptation.datamodules import AdaptationDataModule
from lightning_recall.data import batches

NAMES = ("cup", "pen")


class Domains(AdaptationDataModule):
    """Source image i is of colour i, target image i of 100 + i; `parts` replaces data sets."""

    class_names = NAMES
    image_size = 4

    def __init__(self, parts=None, target_labels=None, **kwargs):
        super().__init__(**{"batch_size": 4, **kwargs})
        self.parts = parts or {}
        self.target_labels = target_labels

    def read(self):
        target = np.arange(12) % 2 if self.target_labels is None else self.target_labels
        sets = {
            "source": {"train": arrays(20, 0), "test": arrays(6, 50)},
            "target": {"train": arrays(12, 100, target), "test": arrays(5, 200)},
        }
        for domain, parts in self.parts.items():
            sets[domain].update(parts)
        return sets


def arrays(count, first, labels=None, size=4, channels=3, names=NAMES):
    colors = (first + np.arange(count)).astype(np.uint8)
    images = np.broadcast_to(colors[:, None, None, None], (count, channels, size, size)).copy()
    return DomainArrays(images, np.arange(count) % 2 if labels is None else labels, names)


def ready(*args, **kwargs):
    data = Domains(*args, **kwargs)
    data.setup("fit")
    return data


def colors(loader):
    return [image for images, _ in loader for image in images[:, 0, 0, 0].tolist()]


def labels(loader):
    return [label for _, part in loader for label in part.tolist()]


def contents(data):
    return [(b["source"][0].tolist(), b["source"][1].tolist(), b["target"].tolist()) for b in data.train_dataloader()]


def test_training_batches():
    data = ready()
    loader = data.train_dataloader()
    assert len(loader) == 3
    for batch in loader:
        images, part = batch["source"]
        assert images.dtype == batch["target"].dtype == torch.uint8
        assert images.shape == batch["target"].shape == (4, 3, 4, 4)
        assert (images[:, 0, 0, 0] % 2 == part).all()
        assert (batch["target"] >= 100).all()
    assert len(ready(epoch_length="longer").train_dataloader()) == 4


def test_source_validation_is_held_out_from_training():
    data = ready(val_fraction=0.2)
    held = colors(data.val_dataloader()["source"])
    train = [
        color for images, _, _ in contents(ready(val_fraction=0.2, epoch_length="longer")) for color in np.ravel(images)
    ]
    assert len(held) == 4
    assert sum(color % 2 for color in held) == 2
    assert not set(held) & set(train)
    assert set(train) | set(held) == set(range(20))
    assert colors(ready(val_fraction=0.2).val_dataloader()["source"]) == held
    assert any(colors(ready(val_fraction=0.2, seed=seed).val_dataloader()["source"]) != held for seed in (1, 2))


def test_given_validation_images_are_used():
    parts = {"source": {"val": arrays(3, 70)}, "target": {"val": arrays(2, 230)}}
    loaders = ready(parts).val_dataloader()
    assert colors(loaders["source"]) == [70, 71, 72]
    assert colors(loaders["target"]) == [230, 231]


def test_evaluation_loaders():
    data = ready(eval_batch_size=3)
    validation, test = data.val_dataloader(), data.test_dataloader()
    assert list(validation) == list(test) == ["source", "target"]
    assert colors(validation["target"]) == list(range(100, 112))  # the training images, for scores
    assert labels(validation["target"]) == [0, 1] * 6
    assert colors(test["source"]) == list(range(50, 56))
    assert colors(test["target"]) == colors(data.predict_dataloader()) == list(range(200, 205))
    assert [len(images) for images, _ in test["source"]] == [3, 3]


def test_evaluation_leaves_the_random_state_as_it_is():
    data = ready()
    before = torch.get_rng_state()
    for loader in (*data.val_dataloader().values(), *data.test_dataloader().values(), data.predict_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_source_validation_and_test():
    data = ready({"source": {"test": None}}, val_fraction=0)
    assert list(data.val_dataloader()) == list(data.test_dataloader()) == ["target"]
    assert len(data.domains["source"]["train"]) == 20
    data = ready({"source": {"test": None}}, val_fraction=0.2)
    assert colors(data.test_dataloader()["source"]) == colors(data.val_dataloader()["source"])
    with pytest.raises(ValueError, match="Domains has no test images of the target"):
        ready({"target": {"test": None}}).test_dataloader()


def test_labels_of_the_target_do_not_reach_training():
    data = ready()
    assert (data.domains["target"]["train"].labels == -1).all()
    first = contents(data)
    for other in (np.arange(12)[::-1] % 2, np.zeros(12, dtype=int), np.full(12, -1)):
        assert contents(ready(target_labels=other)) == first


def test_a_target_without_labels():
    unlabelled = DomainArrays(np.zeros((5, 3, 4, 4), np.uint8), class_names=NAMES)
    data = ready({"target": {"train": unlabelled, "test": unlabelled}})
    assert labels(data.val_dataloader()["target"]) == labels(data.test_dataloader()["target"]) == [-1] * 5


def test_transforms_of_training_images_only():
    class White(nn.Module):
        def forward(self, image):
            return torch.full_like(image, 255)

    data = ready(train_transform=White())
    batch = next(iter(data.train_dataloader()))
    assert (batch["source"][0] == 255).all()
    assert (batch["target"] == 255).all()
    assert colors(data.val_dataloader()["target"]) == list(range(100, 112))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_evaluate_each_image_once(monkeypatch, world_size):
    data = ready()
    seen, lengths = [], set()
    for rank in range(world_size):
        monkeypatch.setattr(
            "lightning_recall.adaptation.datamodules.base.rank_and_world_size", lambda rank=rank: (rank, world_size)
        )
        for domain, loader in data.test_dataloader().items():
            found = list(zip(colors(loader), labels(loader), strict=True))
            lengths.add((domain, len(found)))
            seen += [color for color, label in found if label >= 0]
    assert sorted(seen) == [*range(50, 56), *range(200, 205)]
    assert len(lengths) == 2


def test_overfitting_repeats_the_first_epoch():
    class OverfittingTrainer:
        overfit_batches = 1

    data = ready()
    data.trainer = OverfittingTrainer()
    loader = data.train_dataloader()
    epochs = [[batch["target"].tolist() for batch in loader] for _ in range(2)]
    assert epochs[0] == epochs[1]
    data.trainer = None
    loader = data.train_dataloader()
    epochs = [[batch["target"].tolist() for batch in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]


def test_sizes_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        ready(val_fraction=0.2)
    assert "source images: training 16, validation 4, test 6" in caplog.text
    assert "target images: training 12, validation 12, test 5" in caplog.text
    assert "source training images of each class: cup 8, pen 8" in caplog.text


def test_a_domain_smaller_than_a_batch():
    with pytest.warns(
        UserWarning, match=r"The target has 12 training images, fewer than batch_size=50: an epoch is one"
    ):
        data = ready(batch_size=50)
    assert [len(batch["target"]) for batch in data.train_dataloader()] == [12]
    assert len(ready(batch_size=50, epoch_length="longer").train_dataloader()) == 1  # warnings are errors


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"target": {"train": arrays(0, 0)}}, "The target has no training images"),
        ({"source": {"train": None}}, "The source has no training images"),
        ({"source": {"test": arrays(0, 0)}}, "The source has no test images"),
        ({"target": {"test": arrays(2, 0, names=("cup", "cap"))}}, "target test has 'cap' and lacks 'pen'"),
        (
            {"target": {"train": arrays(6, 0, size=5)}},
            r"target training: images must be .* got torch.uint8 \(3, 5, 5\)",
        ),
        ({"source": {"train": arrays(20, 0, channels=1)}}, r"source training: .* got torch.uint8 \(1, 4, 4\)"),
        ({"source": {"train": arrays(20, 0, labels=[2] * 20)}}, "source training: labels must be from 0 to 1"),
        ({"source": {"train": arrays(20, 0, labels=[-1] * 20)}}, "image 0 has -1. Only images of the target may lack"),
        ({"target": {"test": arrays(2, 0, labels=[0, 2])}}, "target test: labels must be from -1 to 1"),
    ],
)
def test_domains_that_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        ready(parts)


def test_invalid_settings():
    for kwargs, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1"),
        ({"epoch_length": "long"}, 'epoch_length must be "shorter" or "longer"'),
        ({"num_workers": -1}, "num_workers must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Domains(**kwargs)
    with pytest.raises(TypeError, match="abstract"):
        AdaptationDataModule()


def test_processes_that_do_not_divide_a_batch(monkeypatch):
    data = ready()
    monkeypatch.setattr(batches, "rank_and_world_size", lambda: (0, 3))
    with pytest.raises(ValueError, match=r"batch_size=4 .* multiple of their number, 3: choose 6"):
        list(data.train_dataloader())


def test_checking_the_data_reads_them():
    class Broken(Domains):
        def read(self):
            raise ValueError("wrong path")

    with pytest.raises(ValueError, match="wrong path"):
        Broken().check_data()

    class Prepares(Broken):
        def prepare_data(self):
            pass

    Prepares().check_data()
