from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.image import imread
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_recall.callbacks import RetrievalEvaluation, RetrievedImages
from lightning_recall.plots.retrieved_images import draw_queries


class Flatten(pl.LightningModule):
    def forward(self, images):
        return images.float().flatten(1)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass


def run(images, labels, tmp_path, logger=False, **kwargs):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=logger, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[RetrievedImages(**kwargs), RetrievalEvaluation()],
    )  # fmt: skip
    trainer.test(Flatten(), DataLoader(TensorDataset(images, labels), batch_size=7), verbose=False)
    return tmp_path / "runs/version_0/retrieved_images.png"


@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.uint8), (3, torch.uint8), (3, torch.float32)])
def test_writes_a_picture_and_prints_its_path(channels, dtype, tmp_path, capsys):
    images = torch.randint(0, 256, (20, channels, 16, 16)).to(dtype)
    path = run(images, torch.arange(20) // 4, tmp_path, num_queries=3, num_neighbors=4)
    assert imread(path).shape[0] > 200
    assert str(path) in capsys.readouterr().out


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(torch.rand(8, 1, 4, 4), torch.arange(8) // 2, strict=True)


def test_images_that_cannot_be_looked_up_are_an_error(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[RetrievedImages(), RetrievalEvaluation()],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"RetrievedImages loads images by data set index.* map-style data set"):
        trainer.test(Flatten(), DataLoader(Stream(), batch_size=4), verbose=False)
    mappings = [({"pixels": torch.rand(1, 4, 4)}, torch.tensor(row // 2)) for row in range(8)]
    with pytest.raises(ValueError, match="the first element of item 0 is a dict with the keys 'pixels'"):
        trainer.test(Flatten(), DataLoader(mappings, batch_size=4), verbose=False)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("choice", ["random", "worst", "best"])
def test_the_neighbours_are_the_nearest(choice, tmp_path, monkeypatch):
    drawn = {}

    def spy(pictures, retrieved, names):
        drawn.update(retrieved._asdict())
        return draw_queries(pictures, retrieved, names)

    monkeypatch.setattr("lightning_recall.callbacks.retrieved_images.draw_queries", spy)
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) // 3
    run(images, labels, tmp_path, num_queries=5, num_neighbors=6, choices=(choice,))
    unit = torch.nn.functional.normalize(images.flatten(1), dim=1)
    all_ranks = []
    for query in range(30):
        order = [i for i in (unit @ unit[query]).argsort(descending=True).tolist() if i != query]
        all_ranks.append((labels[order] == labels[query]).tolist().index(True) + 1)
        if query in drawn["queries"].tolist():
            row = drawn["queries"].tolist().index(query)
            assert drawn["neighbors"][row].tolist() == order[:6]
            assert drawn["is_relevant"][row].tolist() == (labels[order[:6]] == labels[query]).tolist()
            assert drawn["first_ranks"][row] == all_ranks[query]
    if choice != "random":
        by_class = torch.tensor(all_ranks).view(10, 3)
        extremes = by_class.amax(1) if choice == "worst" else by_class.amin(1)
        assert drawn["first_ranks"].tolist() == extremes.sort(descending=choice == "worst").values[:5].tolist()


def test_pictures_are_sent_to_loggers(tmp_path):
    class TakesImages(CSVLogger):
        images: ClassVar = {}

        def log_image(self, key, images, step=None):
            self.images[key] = images

    loggers = [TakesImages(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    images = torch.randint(0, 256, (20, 3, 16, 16)).to(torch.uint8)
    run(images, torch.arange(20) // 4, tmp_path, loggers, num_queries=2, num_neighbors=2)
    assert set(TakesImages.images) == {"retrieved_images", "retrieved_images_worst"}
    assert all(imread(path).shape[0] > 100 for (path,) in TakesImages.images.values())
    events = EventAccumulator(loggers[1].log_dir).Reload()
    assert set(events.Tags()["images"]) == {"retrieved_images", "retrieved_images_worst"}


def test_named_dataloaders_have_their_own_pictures(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[RetrievedImages(2, 2, ["best"]), RetrievalEvaluation()],
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) // 2), batch_size=4)
    trainer.test(Flatten(), {"small": loader, "large": loader}, verbose=False)
    assert {path.name for path in tmp_path.glob("runs/version_0/*.png")} == {
        "retrieved_images_best_small.png",
        "retrieved_images_best_large.png",
    }


def test_a_missing_evaluation_is_an_error():
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[RetrievedImages()]
    )
    with pytest.raises(ValueError, match=r"RetrievedImages needs RetrievalEvaluation: add"):
        trainer.test(Flatten(), DataLoader(TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) // 2)), verbose=False)


@pytest.mark.parametrize("arguments", [{"num_queries": 0}, {"num_neighbors": 0}, {"choices": ["hardest"]}])
def test_wrong_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be at least 1|some of random, worst and best"):
        RetrievedImages(**arguments)
