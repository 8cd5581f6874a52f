import csv
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_recall.adaptation.callbacks import PredictionWriter

LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


class Given(pl.LightningModule):
    """The images are the logits."""

    def forward(self, inputs):
        return inputs

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch[0]).argmax(1)


class WithoutForward(Given):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch[0].argmax(1)


class Files(TensorDataset):
    class_names = ("cat", "dog", "owl")
    paths = tuple(f"/data/{index}.jpg" for index in range(7))


def run(tmp_path, loaders=None, module=None, devices=1, times=1):
    strategy = {} if devices == 1 else {"strategy": "ddp_fork"}
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[PredictionWriter()], **strategy,
    )  # fmt: skip
    for _ in range(times):
        trainer.predict(module or Given(), loaders, return_predictions=False)
    return tmp_path / "runs/version_0"


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("devices", [1, 2])
def test_each_image_has_one_row(devices, tmp_path, capsys):
    """Two processes get four images each, because a sampler repeats one of the seven."""
    folder = run(tmp_path, DataLoader(Files(LOGITS), batch_size=3), devices=devices)
    rows = read(folder / "predictions.csv")
    classes = LOGITS.argmax(1).tolist()
    assert [int(row["index"]) for row in rows] == list(range(7))
    assert [row["path"] for row in rows] == list(Files.paths)
    assert [int(row["class"]) for row in rows] == classes
    assert [row["name"] for row in rows] == [Files.class_names[label] for label in classes]
    expected = LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True)
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.max(1).values.tolist(), abs=1e-6)
    if devices == 1:
        assert f"Predicted classes: {folder / 'predictions.csv'}\n" in capsys.readouterr().out


def test_existing_tables_are_kept(tmp_path):
    folder = run(tmp_path, DataLoader(Files(LOGITS), batch_size=3), times=2)
    assert {path.name for path in folder.iterdir()} == {"predictions.csv", "predictions-1.csv"}


def test_columns_without_content_are_omitted(tmp_path):
    folder = run(tmp_path, DataLoader(TensorDataset(LOGITS), batch_size=3), WithoutForward())
    assert list(read(folder / "predictions.csv")[0]) == ["index", "class"]


def test_logits_of_an_earlier_batch_are_not_used(tmp_path):
    class FirstOnly(Given):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return (self(batch[0]) if batch_idx == 0 else batch[0]).argmax(1)

    folder = run(tmp_path, DataLoader(TensorDataset(LOGITS[:6]), batch_size=3), FirstOnly())
    assert list(read(folder / "predictions.csv")[0]) == ["index", "class"]


def test_several_dataloaders_have_a_file_each(tmp_path):
    folder = run(tmp_path, [DataLoader(TensorDataset(LOGITS)), DataLoader(Files(LOGITS[:2]))])
    assert [len(read(folder / f"predictions_{number}.csv")) for number in (0, 1)] == [7, 2]


def test_the_module_is_left_as_it_was(tmp_path):
    module = Given()
    run(tmp_path, DataLoader(TensorDataset(LOGITS)), module)
    assert not module._forward_hooks


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer = pl.Trainer(fast_dev_run=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=[PredictionWriter()])
    trainer.predict(Given(), DataLoader(Files(LOGITS), batch_size=2))
    assert not list(tmp_path.iterdir())


class Stream(IterableDataset):
    def __iter__(self):
        yield from [(logits,) for logits in LOGITS]


def test_unknown_indices_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"PredictionWriter names each image .*, but the indices.* map-style"):
        run(tmp_path, DataLoader(Stream(), batch_size=2))


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (None, "a NoneType"),
        (torch.zeros(2), r"a tensor \(2,\)"),
        (torch.zeros(2, 6, dtype=torch.long), r"a tensor \(2, 6\)"),
    ],
)
def test_predictions_that_are_no_classes_are_an_error(outputs, found):
    with pytest.raises(ValueError, match=rf"classes \(B,\), integers; that of SimpleNamespace returned {found}\."):
        PredictionWriter().on_predict_batch_end(None, SimpleNamespace(), outputs, None, 0)
