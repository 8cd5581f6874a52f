import multiprocessing
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_recall import ClassBalancedBatchSampler, RetrievalDataModule
from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.data import ImagesInMemory

LABELS = np.repeat(np.arange(10), 6)


def images_in_memory():
    images = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 1, 8, 8)).copy()
    return ImagesInMemory(images, LABELS)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"train": 0, "test": 60}, "training"),
        ({"train": 60, "val": 0, "test": 60}, "validation"),
        ({"train": 60, "test": {"small": 60, "large": 0}}, "test large"),
    ],
)
def test_a_split_without_images_is_rejected(parts, name):
    of = {count: images_in_memory().select(slice(count)) for count in (0, 60)}
    data = RetrievalDataModule()
    data.read = lambda: {
        part: {name: of[n] for name, n in count.items()} if isinstance(count, dict) else of[count]
        for part, count in parts.items()
    }
    with pytest.raises(ValueError, match=f"RetrievalDataModule has no images for {name}: check its lists"):
        data.setup("fit")


class Memory(RetrievalDataModule):
    def read(self):
        return {"train": images_in_memory()}


@pytest.mark.parametrize("settings", [{}, {"seed": 7}, {"reshuffle": False}, {"seed": 7, "reshuffle": False}])
@pytest.mark.parametrize("overfit_batches", [0, 1])
def test_the_sampler_keeps_its_own_settings(settings, overfit_batches):
    data = Memory(batch_size=16, samples_per_class=2, val_classes=0, seed=3)
    data.sampler = partial(ClassBalancedBatchSampler, **settings)
    data.trainer = SimpleNamespace(overfit_batches=overfit_batches)
    data.setup("fit")
    sampler = data.train_dataloader().sampler
    expected = ClassBalancedBatchSampler(LABELS, 16, 2, **{"seed": 3, **settings})
    expected.reshuffle = settings.get("reshuffle", True) and not overfit_batches
    for _ in range(2):
        assert list(sampler) == list(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", "256", "must be an integer, at least 1, got '256'"),
        ("batch_size", 256.0, "must be an integer, at least 1, got 256.0"),
        ("samples_per_class", "all", "must be an integer, at least 1, got 'all'"),
        ("chunk_size", None, "must be an integer, at least 1, got None"),
        ("chunk_size", 0, "must be at least 1, got 0"),
        ("eval_batch_size", 0, "must be at least 1, got 0"),
        ("eval_batch_size", True, "must be an integer, at least 1, got True"),
        ("num_workers", -1, "must be at least 0, got -1"),
        ("seed", -1, "must be at least 0, got -1"),
        ("seed", None, "must be an integer, at least 0, got None"),
    ],
)
def test_arguments_of_a_wrong_type_are_rejected_at_once(name, value, message):
    with pytest.raises(ValueError, match=f"{name} {message}"):
        RetrievalDataModule(**{name: value})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_of_16_digits_are_exact(num_workers):
    labels = LABELS + 9_007_199_254_740_993  # 2 ** 53 + 1, the first integer that float64 cannot represent
    data = Memory(batch_size=16, samples_per_class=2, val_classes=2, num_workers=num_workers)
    data.read = lambda: {"train": ImagesInMemory(images_in_memory().images.numpy(), labels.tolist())}
    data.setup("fit")
    loaders = data.train_dataloader(), data.val_dataloader()
    chunks = [chunk for batch in loaders[0] for chunk in batch] + list(loaders[1])
    found = torch.cat([labels for _, labels in chunks])
    assert set(found.tolist()) == set(labels.tolist())
    for images, part in chunks:
        assert part.tolist() == labels[images[:, 0, 0, 0].numpy()].tolist()


def test_evaluation_leaves_the_random_numbers_of_the_training_unchanged():
    data = Memory(val_classes=2)
    data.setup("fit")
    state = torch.get_rng_state()
    assert len(list(data.val_dataloader())) == 1
    assert torch.equal(torch.get_rng_state(), state)


class Processes(LightningModule):
    """Records the loader processes of each training epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append({child.pid for child in multiprocessing.active_children()})
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("loader_kwargs", [None, {"persistent_workers": False}])
def test_workers_live_until_the_end_of_the_training(loader_kwargs, tmp_path):
    before = {child.pid for child in multiprocessing.active_children()}
    data = Memory(batch_size=16, samples_per_class=2, val_classes=2, num_workers=1, loader_kwargs=loader_kwargs)
    module = Processes()
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, **settings).fit(module, datamodule=data)
    first, second = (seen - before for seen in module.seen)
    assert first
    assert (first == second) == (loader_kwargs is None)
    assert {child.pid for child in multiprocessing.active_children()} <= before


def test_loader_kwargs_reach_all_loaders():
    data = Memory(
        batch_size=16, samples_per_class=2, val_classes=2, num_workers=1, loader_kwargs={"prefetch_factor": 5}
    )
    data.setup("fit")
    data.test_data = data.val_data
    for loader in (data.train_dataloader().loader, data.val_dataloader(), data.test_dataloader()):
        assert (loader.prefetch_factor, loader.persistent_workers) == (5, True)
