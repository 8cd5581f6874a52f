import pytest
import torch
from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalEvaluation, RetrievalModule
from lightning_recall._lightning import Trainer
from lightning_recall.callbacks import EmbeddingWriter, ModelSaver, RetrievedImages, load_embeddings
from lightning_recall.datamodules import GlyphsDataModule
from lightning_recall.embedding_sets import read_embedding_set
from lightning_recall.models import SmallConvNet

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
IMAGES = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small():
    return RetrievalModule(ImageEmbedder(SmallConvNet(widths=(4, 4, 8)), 8, norm="batch"), RecallAtKLoss()).eval()


def files(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_test_ends_with_a_saved_model(tmp_path, glyph_folder, capsys):
    module, data = small(), GlyphsDataModule(root=str(glyph_folder), batch_size=64)
    callbacks = [ModelSaver("mit"), RetrievalEvaluation((1,)), RetrievedImages(2, 2, ("worst",))]  # saves last
    trainer = Trainer(default_root_dir=tmp_path, limit_test_batches=1, callbacks=callbacks, **QUIET)
    (scores,) = trainer.test(module, data, verbose=False)
    folder = tmp_path / "runs/version_0/model"
    assert str(folder) in capsys.readouterr().out
    assert RetrievalModule.from_pretrained(folder).training_record["scores"] == pytest.approx(scores)
    assert "license: mit" in (folder / "README.md").read_text()
    pictures = [folder / "retrieved_images.png", folder.parent / "retrieved_images_worst.png"]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    before = files(folder)
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, RetrievedImages)]
    Trainer.test(trainer, module, data, verbose=False)
    assert files(folder) == before
    second = folder.with_name("model-1")
    assert sorted(files(second)) == ["README.md", "config.json", "model.safetensors"]  # no picture of the first test
    assert RetrievalModule.from_pretrained(second).training_record["data"]["class"] == "GlyphsDataModule"


def test_nothing_is_saved_without_a_complete_test(tmp_path, glyph_folder):
    data = GlyphsDataModule(root=str(glyph_folder), batch_size=64)
    Trainer(default_root_dir=tmp_path, fast_dev_run=True, callbacks=[ModelSaver()], **QUIET).test(small(), data)
    with pytest.raises(ValueError, match=r"^ModelSaver needs a module with save_pretrained, .*, got Plain: "):
        Trainer(default_root_dir=tmp_path, callbacks=[ModelSaver()], **QUIET).test(Plain(), DataLoader(IMAGES))
    assert not list(tmp_path.rglob("model*"))


class Plain(LightningModule):
    def test_step(self, batch, batch_idx):
        pass


def predict(module, folder, **options):
    writer = EmbeddingWriter(str(folder), shard_size=4, **options)
    trainer = Trainer(default_root_dir=folder.parent, callbacks=[writer], **QUIET)
    trainer.predict(module, DataLoader(TensorDataset(IMAGES, torch.arange(6)), batch_size=2))


def test_embeddings_have_their_model_beside_them(tmp_path):
    module, folder = small(), tmp_path / "a"
    (folder / "unfinished-model").mkdir(parents=True)  # of an interrupted run
    (folder / "unfinished-model" / "config.json").write_text("{")
    predict(module, folder)
    assert read_embedding_set(folder).model_folder == folder / "model"
    again = RetrievalModule.from_pretrained(folder / "model")
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES), load_embeddings(folder)["embeddings"])
    before = files(folder / "model")
    predict(module, folder)  # resumed
    assert files(folder / "model") == before
    predict(module, tmp_path / "b", save_model=False)
    assert not (tmp_path / "b" / "model").exists()
    assert len(load_embeddings(tmp_path / "b")["ids"]) == 6


def test_the_model_of_other_embeddings_is_kept(tmp_path):
    other = small()
    other.embedder.projection[0].bias.data += 1
    other.save_pretrained(tmp_path / "a" / "model")
    before = files(tmp_path / "a" / "model")
    with pytest.raises(ValueError, match="a/model holds a model with other weights: choose another folder, or delete"):
        predict(small(), tmp_path / "a")
    assert files(tmp_path / "a" / "model") == before
    (tmp_path / "a" / "model" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"^[^\n]*a/model is not the folder of a model, rename or delete it: [^\n]*$"):
        predict(other, tmp_path / "a")
    assert not list((tmp_path / "a").glob("shard-*"))


def test_embeddings_are_written_if_the_model_cannot_be_saved(tmp_path):
    class State(RecallAtKLoss):
        def get_extra_state(self):
            return {"a": 1}

    module = small()
    module.loss = State()
    with pytest.warns(
        UserWarning, match=r"^The model is not saved in [^\n]*a/model: loss._extra_state is a dict: [^\n]*$"
    ):
        predict(module, tmp_path / "a")
    assert len(load_embeddings(tmp_path / "a")["ids"]) == 6
    assert read_embedding_set(tmp_path / "a").model_folder is None
    predict(PlainEmbedder(), tmp_path / "b")  # without save_pretrained: no warning, which would be an error
    assert not (tmp_path / "b" / "model").exists()


class PlainEmbedder(LightningModule):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch[0].float().flatten(1)
