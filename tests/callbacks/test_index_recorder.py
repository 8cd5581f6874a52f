import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_recall._lightning import add_dataloader_hook, remove_dataloader_hook
from lightning_recall.callbacks.index_recorder import (
    indices_of_batch,
    record_indices,
    recorder_of,
    recording_copy,
    stop_recording,
)

DATA = torch.arange(10) * 7


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(5)


class OwnIteration(DataLoader):
    def __iter__(self):
        return reversed(list(super().__iter__()))


LOADERS = {
    "in order": lambda: DataLoader(DATA, batch_size=4),
    "shuffled": lambda: DataLoader(DATA, batch_size=4, shuffle=True),
    "workers": lambda: DataLoader(DATA, batch_size=3, shuffle=True, num_workers=2),
    "persistent": lambda: DataLoader(DATA, batch_size=3, shuffle=True, num_workers=1, persistent_workers=True),
    "some indices": lambda: DataLoader(DATA, batch_size=3, sampler=SubsetRandomSampler([1, 8, 3, 4])),
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, True)),
    "lists of indices": lambda: DataLoader(DATA, batch_size=None, sampler=[[1, 2], [9, 9, 0]]),
    "tensors of indices": lambda: DataLoader(DATA, batch_size=None, sampler=[torch.tensor([1, 2]), torch.tensor([9])]),
    "one index at a time": lambda: DataLoader(DATA, batch_size=None),
}


@pytest.mark.parametrize("name", LOADERS)
def test_indices_are_those_that_the_batch_holds(name):
    own = LOADERS[name]()
    loader = recording_copy(own)
    assert len(loader) == len(own)
    for _ in range(2):  # each pass resets the record
        for number, batch in enumerate(loader):
            values = batch.reshape(-1)
            assert torch.equal(DATA[indices_of_batch(loader, number, len(values))], values)
            if number == 0 and _ == 0:
                break  # as a sanity check does
    assert recorder_of(own) is None  # the dataloader of the user is unchanged
    assert recording_copy(loader) is loader


def test_attributes_are_forwarded_to_the_sampler():
    sampler = BatchSampler(RandomSampler(DATA), 4, True)
    recorder = recorder_of(recording_copy(DataLoader(DATA, batch_sampler=sampler)))
    assert (recorder.sampler, recorder.batch_size, recorder.drop_last, len(recorder)) == (sampler.sampler, 4, True, 2)
    with pytest.raises(AttributeError):
        _ = recorder.nothing


def test_unknown_indices_are_none():
    in_any_order = DataLoader(DATA, num_workers=1, in_order=False)
    for loader in ([1, 2], Stream(), DataLoader(Stream()), OwnIteration(DATA), in_any_order):
        assert recording_copy(loader) is loader
        assert indices_of_batch(loader, 0, 1) is None
    of_strings = recording_copy(DataLoader({"a": 1, "b": 2}, batch_sampler=[["a"], ["b"]]))
    assert [indices_of_batch(of_strings, number, 1) for number, _ in enumerate(of_strings)] == [None, None]
    batches = recording_copy(DataLoader(DATA.view(5, 2), batch_size=None))  # items are batches themselves
    assert [indices_of_batch(batches, number, len(batch)) for number, batch in enumerate(batches)] == [None] * 5
    used = DataLoader(DATA, num_workers=1, persistent_workers=True)
    next(iter(used))  # its workers keep the sampler that they started with
    loader = recording_copy(used)
    assert [indices_of_batch(loader, number, 1) for number, _ in enumerate(loader)] == [None] * 10


class Trains(LightningModule):
    """Checks which of its dataloaders record."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        assert recorder_of(self.trainer.train_dataloader) is None
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        assert recorder_of(self.trainer.val_dataloaders) is not None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_training_dataloaders_do_not_record_and_the_strategy_is_restored():
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    loader = DataLoader(DATA)
    record_indices(trainer)
    record_indices(trainer)  # two callbacks may do so
    trainer.fit(Trains(), loader, loader)
    assert trainer.train_dataloader is loader
    stop_recording(trainer)
    stop_recording(trainer)
    assert "process_dataloader" not in vars(trainer.strategy)


def test_hooks_of_dataloaders_are_called_in_order_until_they_are_removed():
    def add_one(_, loader):
        return loader + 1

    def double(hooked, loader):
        assert hooked is trainer
        return 2 * loader

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for hook in (add_one, double, add_one):
        add_dataloader_hook(trainer, hook)
    assert trainer.strategy.process_dataloader(3) == 8
    remove_dataloader_hook(trainer, add_one)
    assert trainer.strategy.process_dataloader(3) == 6
    remove_dataloader_hook(trainer, double)
    assert trainer.strategy.process_dataloader(3) == 3
    assert "process_dataloader" not in vars(trainer.strategy)


def sorted_down(items):
    return torch.tensor(sorted(items, reverse=True))


def test_indices_are_unknown_once_a_collate_function_sorts():
    loader = recording_copy(DataLoader(DATA, batch_size=4, collate_fn=sorted_down, num_workers=1))
    assert [indices_of_batch(loader, number, len(batch)) for number, batch in enumerate(loader)] == [None] * 3
    kept = recording_copy(DataLoader(DATA, batch_size=4, collate_fn=lambda items: torch.stack(items)))
    assert [indices_of_batch(kept, number, len(batch)).tolist() for number, batch in enumerate(kept)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9],
    ]  # fmt: skip
    whole = DataLoader(DATA, batch_size=None, sampler=[[1, 2], [3, 0]], collate_fn=lambda batch: batch.flip(0))
    assert recording_copy(whole) is whole


def test_permuted_labels_make_indices_unknown():
    labels = torch.tensor([5, 5, 6, 7, 7, 8])
    for data in (TensorDataset(DATA[:6], labels), ConcatDataset([TensorDataset(DATA[:6], labels)]), Targets(labels)):
        loader = recording_copy(DataLoader(Subset(data, [5, 4, 2, 1]), batch_size=4))
        next(iter(loader))
        assert indices_of_batch(loader, 0, 4, torch.tensor([8, 7, 6, 5])).tolist() == [0, 1, 2, 3]
        assert indices_of_batch(loader, 0, 4, torch.tensor([5, 6, 7, 8])) is None
        assert indices_of_batch(loader, 0, 4, torch.tensor([0, 1, 2, 3])).tolist() == [0, 1, 2, 3]  # mapped
        assert indices_of_batch(loader, 0, 4, torch.tensor([8, -100, 6, 5])).tolist() == [0, 1, 2, 3]  # not read


class Targets(list):
    """A data set with a list of targets, as in torchvision."""

    def __init__(self, labels):
        super().__init__(DATA[: len(labels)])
        self.targets = labels.tolist()
