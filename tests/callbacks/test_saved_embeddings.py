import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import SavedEmbeddings, load_embeddings

IMAGES, LABELS = torch.randn(23, 3, generator=torch.Generator().manual_seed(0)), torch.arange(23) // 2


class Double(pl.LightningModule):
    """Doubles its input; its batch number `dies_at` is never finished."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.dies_at = dies_at
        self.seen = 0

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        images = batch[0] if isinstance(batch, list | tuple) else batch
        if batch_idx == self.dies_at:
            raise KeyboardInterrupt if self.dies_at == 2 else RuntimeError("power cut")
        self.seen += len(images)
        return self.factor.detach() * images


class Data(pl.LightningDataModule):
    def __init__(self, several=None):
        super().__init__()
        self.several = several

    def predict_dataloader(self):
        loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
        other = DataLoader(TensorDataset(-IMAGES[:9], LABELS[:9]), batch_size=4)
        return {None: loader, "list": [loader, other], "dict": {"one": loader, "two": other}}[self.several]


def trainer(tmp_path, callback, **kwargs):
    return pl.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False, callbacks=[callback],
        **{"devices": 1, **kwargs},
    )  # fmt: skip


def assert_saved(folder, images=IMAGES, labels=LABELS):
    saved = load_embeddings(folder)
    assert torch.equal(saved["embeddings"], 2 * images)
    assert torch.equal(saved["labels"], labels)
    assert torch.equal(saved["ids"], torch.arange(len(images)))


def test_by_default_it_is_one_file_in_the_runs_folder(tmp_path, capsys):
    trainer(tmp_path, SavedEmbeddings()).predict(Double(), datamodule=Data())
    assert_saved(tmp_path / "runs/version_0/embeddings")
    assert str(tmp_path / "runs/version_0/embeddings") in capsys.readouterr().out
    (path,) = (tmp_path / "runs/version_0/embeddings").glob("shard-*")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["embeddings"], 2 * IMAGES.numpy())


def test_a_loader_of_ones_own_and_images_without_labels(tmp_path):
    trainer(tmp_path, SavedEmbeddings(format="safetensors")).predict(Double(), DataLoader(IMAGES, batch_size=5))
    (path,) = (tmp_path / "runs/version_0/embeddings").glob("shard-*.safetensors")
    assert load_file(path).keys() == {"embeddings", "ids"}
    assert torch.equal(load_embeddings(tmp_path / "runs/version_0/embeddings")["embeddings"], 2 * IMAGES)


@pytest.mark.parametrize("form", ["npz", "safetensors"])
@pytest.mark.parametrize("dies_at", [2, 5])
def test_an_interrupted_run_goes_on(form, dies_at, tmp_path):
    folder = tmp_path / "kept"
    callback, module = SavedEmbeddings(str(folder), form, shard_size=6), Double(dies_at)
    with pytest.raises((SystemExit, KeyboardInterrupt, RuntimeError)):
        trainer(tmp_path, callback).predict(module, datamodule=Data())
    (folder / f"unfinished-shard-00-00009.{form}").write_bytes(b"half")  # of a write that was cut off
    assert module.seen == len(load_embeddings(folder)["ids"]) == 4 * dies_at  # nothing is lost
    again = Double()
    trainer(tmp_path, SavedEmbeddings(str(folder), form, shard_size=6)).predict(again, datamodule=Data())
    assert again.seen == 23 - 4 * dies_at  # nothing is done twice
    assert_saved(folder)
    with pytest.warns(UserWarning, match="across ranks is zero"):
        trainer(tmp_path, SavedEmbeddings(str(folder), form)).predict(again, datamodule=Data())
    assert_saved(folder)


def test_a_run_goes_on_with_other_processes(tmp_path):
    folder = str(tmp_path / "kept")
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, SavedEmbeddings(folder, shard_size=4)).predict(Double(dies_at=3), datamodule=Data())
    several = trainer(tmp_path, SavedEmbeddings(folder, shard_size=4), devices=2, strategy="ddp_fork")
    several.predict(Double(), datamodule=Data(), return_predictions=False)
    assert_saved(folder)
    assert len(list((tmp_path / "kept").glob("shard-01-*"))) > 0


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")  # all of one is saved
@pytest.mark.parametrize(("several", "names"), [("list", ("0", "1")), ("dict", ("one", "two"))])
def test_several_dataloaders_have_folders(several, names, tmp_path):
    folder = tmp_path / "kept"
    for _ in range(2):
        if (folder / names[1]).exists():
            next((folder / names[1]).glob("shard-*")).unlink()  # as if it had not come so far
        trainer(tmp_path, SavedEmbeddings(str(folder))).predict(Double(), datamodule=Data(several))
        assert_saved(folder / names[0])
        assert_saved(folder / names[1], -IMAGES[:9], LABELS[:9])


def test_a_file_that_is_lost_is_made_again_and_no_other_overwritten(tmp_path):
    folder, data = tmp_path / "kept", Data()
    trainer(tmp_path, SavedEmbeddings(str(folder), shard_size=4)).predict(Double(), datamodule=data)
    (folder / "shard-00-00002.npz").unlink()
    for seen in (4, 23):  # the second run without a folder of its own embeds all
        module = Double()
        kept = SavedEmbeddings(str(folder) if seen == 4 else None, shard_size=4)
        trainer(tmp_path, kept).predict(module, datamodule=data)
        assert module.seen == seen
        assert_saved(folder)


def test_what_is_embedded_again_counts_once(tmp_path):
    folder = tmp_path / "kept"
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5)
    for _ in range(2):  # a dataloader that is given to the Trainer is gone through as it is
        trainer(tmp_path, SavedEmbeddings(str(folder))).predict(Double(), loader)
    assert len(list(folder.glob("shard-*"))) == 2
    assert_saved(folder)


def test_embeddings_of_other_weights_are_not_mixed(tmp_path):
    folder = str(tmp_path / "kept")
    trainer(tmp_path, SavedEmbeddings(folder)).predict(Double(), datamodule=Data())
    other = Double()
    torch.nn.init.constant_(other.factor, 3)
    with pytest.raises(
        ValueError, match=r"of another state: other weights\. Choose another folder, or delete this one"
    ):
        trainer(tmp_path, SavedEmbeddings(folder)).predict(other, datamodule=Data())


def test_half_precision_stays_and_bf16_is_widened(tmp_path):
    for dtype, stored in ((torch.float16, torch.float16), (torch.bfloat16, torch.float32)):
        module = Double().to(dtype)
        loader = DataLoader(TensorDataset(IMAGES.to(dtype), LABELS), batch_size=4)
        folder = str(tmp_path / str(dtype))
        trainer(tmp_path, SavedEmbeddings(folder)).predict(module, loader)
        assert load_embeddings(folder)["embeddings"].dtype == stored


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="npz"):
        SavedEmbeddings(format="csv")
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        SavedEmbeddings(shard_size=0)
    with pytest.raises(ValueError, match="There are no embeddings in"):
        load_embeddings(tmp_path)

    class Scalars(Double):
        def predict_step(self, batch, batch_idx):
            return batch[0].sum()

    with pytest.raises(ValueError, match=r"predict_step of Scalars must return embeddings \(b, D\)"):
        trainer(tmp_path, SavedEmbeddings()).predict(Scalars(), datamodule=Data())
