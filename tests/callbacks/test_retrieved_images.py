import pytest
import pytorch_lightning as pl
import torch
from matplotlib.image import imread
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import RetrievedImages
from lightning_recall.callbacks.retrieved_images import RIGHT, WRONG, choose_queries, draw_rows, to_picture


class Flatten(pl.LightningModule):
    def forward(self, images):
        return images.float().flatten(1)

    def test_step(self, batch, batch_idx):
        pass


def run(images, labels, tmp_path, **kwargs):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[RetrievedImages(**kwargs)],
    )  # fmt: skip
    trainer.test(Flatten(), DataLoader(TensorDataset(images, labels), batch_size=7), verbose=False)
    return tmp_path / "retrieved_images.png"


@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.uint8), (3, torch.uint8), (3, torch.float32)])
def test_writes_a_picture_and_says_where(channels, dtype, tmp_path, capsys):
    images = torch.randint(0, 256, (20, channels, 16, 16)).to(dtype)
    path = run(images, torch.arange(20) // 4, tmp_path, num_queries=3, num_neighbors=4)
    assert imread(path).shape[0] > 200
    assert str(path) in capsys.readouterr().out


def test_a_shuffled_loader_is_refused(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[RetrievedImages()],
    )  # fmt: skip
    data = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) // 2)
    with (
        pytest.warns(UserWarning, match="shuffling enabled"),
        pytest.raises(ValueError, match="in order"),
    ):
        trainer.test(Flatten(), DataLoader(data, shuffle=True), verbose=False)


def test_the_frame_tells_right_from_wrong():
    pictures = {i: to_picture(torch.full((1, 8, 8), i, dtype=torch.uint8)) for i in range(4)}
    figure = draw_rows(
        pictures, torch.tensor([0]), torch.tensor([[2, 3]]), torch.tensor([[0.9, 0.8]]), torch.tensor([[True, False]])
    )
    _, right, wrong = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["query", "0.90", "0.80"]
    assert right.spines["left"].get_linestyle() != wrong.spines["left"].get_linestyle()
    for axes, (colour, _) in ((right, RIGHT), (wrong, WRONG)):
        assert "#{:02x}{:02x}{:02x}".format(*(round(255 * c) for c in axes.spines["top"].get_edgecolor()[:3])) == colour


def test_the_neighbours_are_the_nearest(tmp_path, monkeypatch):
    drawn = {}

    def spy(pictures, queries, neighbors, similarities, relevant):
        drawn.update(queries=queries, neighbors=neighbors, similarities=similarities, relevant=relevant)
        return draw_rows(pictures, queries, neighbors, similarities, relevant)

    monkeypatch.setattr("lightning_recall.callbacks.retrieved_images.draw_rows", spy)
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) // 3
    run(images, labels, tmp_path, num_queries=5, num_neighbors=6)
    unit = torch.nn.functional.normalize(images.flatten(1), dim=1)
    for row, query in enumerate(drawn["queries"].tolist()):
        order = [i for i in (unit @ unit[query]).argsort(descending=True).tolist() if i != query][:6]
        assert drawn["neighbors"][row].tolist() == order
        assert drawn["relevant"][row].tolist() == (labels[order] == labels[query]).tolist()


def test_queries_are_of_different_classes_and_have_a_positive():
    labels = torch.tensor([0] * 50 + [1, 1, 2, 2, 3])
    every = torch.ones(55, dtype=torch.bool)
    chosen = choose_queries(labels, every, every, 3, seed=0)
    assert sorted(labels[chosen].tolist()) == [0, 1, 2]
    more = choose_queries(labels, every, every, 10, seed=0)
    assert len(set(more.tolist())) == 10
    assert 3 not in labels[more]
    assert torch.equal(chosen, choose_queries(labels, every, every, 3, seed=0))


@pytest.mark.parametrize("arguments", [{"num_queries": 0}, {"num_neighbors": 0}])
def test_numbers_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        RetrievedImages(**arguments)
