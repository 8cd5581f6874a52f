from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.colors import to_hex
from matplotlib.image import imread
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_recall.callbacks import RetrievalEvaluation, RetrievedImages
from lightning_recall.callbacks.retrieved_images import RIGHT, WRONG, choose_queries, draw_rows, to_picture
from lightning_recall.metrics import RetrievalScores


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
def test_writes_a_picture_and_says_where(channels, dtype, tmp_path, capsys):
    images = torch.randint(0, 256, (20, channels, 16, 16)).to(dtype)
    path = run(images, torch.arange(20) // 4, tmp_path, num_queries=3, num_neighbors=4)
    assert imread(path).shape[0] > 200
    assert str(path) in capsys.readouterr().out


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(torch.rand(8, 1, 4, 4), torch.arange(8) // 2, strict=True)


def test_a_test_whose_images_cannot_be_found_again_is_refused(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[RetrievedImages(), RetrievalEvaluation()],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"RetrievedImages looks its images up in the data set.* map-style data set"):
        trainer.test(Flatten(), DataLoader(Stream(), batch_size=4), verbose=False)
    mappings = [({"pixels": torch.rand(1, 4, 4)}, torch.tensor(row // 2)) for row in range(8)]
    with pytest.raises(ValueError, match="item 0 of the data set begins with a dict with the keys 'pixels'"):
        trainer.test(Flatten(), DataLoader(mappings, batch_size=4), verbose=False)
    assert not list(tmp_path.rglob("*.png"))


def test_the_frame_tells_right_from_wrong():
    pictures = {i: to_picture(torch.full((1, 8, 8), i, dtype=torch.uint8)) for i in range(4)}
    figure = draw_rows(
        pictures,
        torch.tensor([0]),
        torch.tensor([[2, 3]]),
        torch.tensor([[0.9, 0.8]]),
        torch.tensor([[True, False]]),
        torch.tensor([1234]),
    )
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["query\nright at 1,234", "0.90", "0.80"]
    _, right, wrong = axes.patches
    assert right.get_linestyle() != wrong.get_linestyle()
    for frame, (colour, _) in ((right, RIGHT), (wrong, WRONG)):
        assert to_hex(frame.get_edgecolor()) == colour


def test_images_keep_their_shape_and_their_place():
    pictures = {0: np.zeros((10, 20)), 1: np.zeros((20, 10, 3)), 2: np.zeros((8, 8))}
    queries, neighbors, similarities = torch.tensor([0, 1]), torch.tensor([[1, 2], [2, 0]]), torch.ones(2, 2)
    (axes,) = draw_rows(pictures, queries, neighbors, similarities, similarities > 0, torch.tensor([1, 1])).axes
    drawn = [image.get_extent() for image in axes.images]  # left, right, bottom, top; y goes down
    shapes = [(right - left) / (bottom - top) for left, right, bottom, top in drawn]
    np.testing.assert_allclose(shapes, [2, 0.5, 1, 0.5, 1, 2])
    middles = np.array([((left + right) / 2, (bottom + top) / 2) for left, right, bottom, top in drawn]).reshape(
        2, 3, 2
    )
    assert (np.diff(middles[:, :, 0], axis=1) > 0.85).all()  # columns and rows stand apart
    assert (np.diff(middles[:, :, 1], axis=0) > 0.85).all()
    for frame, (left, right, bottom, top) in zip(axes.patches, drawn, strict=True):
        np.testing.assert_allclose(frame.get_bbox().extents, (left, top, right, bottom))


@pytest.mark.parametrize("choice", ["random", "worst", "best"])
def test_the_neighbours_are_the_nearest(choice, tmp_path, monkeypatch):
    drawn = {}

    def spy(pictures, queries, neighbors, similarities, relevant, first_ranks):
        drawn.update(queries=queries, neighbors=neighbors, relevant=relevant, ranks=first_ranks)
        return draw_rows(pictures, queries, neighbors, similarities, relevant, first_ranks)

    monkeypatch.setattr("lightning_recall.callbacks.retrieved_images.draw_rows", spy)
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
            assert drawn["relevant"][row].tolist() == (labels[order[:6]] == labels[query]).tolist()
            assert drawn["ranks"][row] == all_ranks[query]
    if choice != "random":
        by_class = torch.tensor(all_ranks).view(10, 3)
        extremes = by_class.amax(1) if choice == "worst" else by_class.amin(1)
        assert drawn["ranks"].tolist() == extremes.sort(descending=choice == "worst").values[:5].tolist()


def test_queries_are_of_different_classes():
    labels = torch.tensor([0] * 50 + [1, 1, 2, 2, 3])
    metric = RetrievalScores(("recall",))
    metric.update(torch.randn(55, 3), labels)
    found = metric.search()
    chosen = found.queries[choose_queries(found, 3, "random", seed=0)]
    assert sorted(labels[chosen].tolist()) == [0, 1, 2]
    more = found.queries[choose_queries(found, 10, "random", seed=0)]
    assert len(set(more.tolist())) == 10
    assert 3 not in labels[more]  # which has nothing to find
    assert torch.equal(chosen, found.queries[choose_queries(found, 3, "random", seed=0)])


def test_loggers_get_the_pictures(tmp_path):
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


def test_named_dataloaders_have_pictures_of_their_own(tmp_path):
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


def test_it_needs_an_evaluation():
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[RetrievedImages()]
    )
    with pytest.raises(ValueError, match=r"RetrievedImages needs RetrievalEvaluation: add"):
        trainer.test(Flatten(), DataLoader(TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) // 2)), verbose=False)


@pytest.mark.parametrize("arguments", [{"num_queries": 0}, {"num_neighbors": 0}, {"choices": ["hardest"]}])
def test_wrong_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be at least 1|some of random, worst and best"):
        RetrievedImages(**arguments)
