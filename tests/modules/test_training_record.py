import json
from functools import partial

import numpy as np
import pytest
import torch

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalEvaluation, RetrievalModule
from lightning_recall._lightning import Trainer
from lightning_recall.datamodules import GlyphsDataModule
from lightning_recall.models import SmallConvNet
from lightning_recall.optimization import WarmupCosineLR


@pytest.fixture(scope="module")
def tested(glyph_folder, tmp_path_factory):
    """A module after two epochs and a test, its Trainer, and its checkpoint from before the test."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = RetrievalModule(
        ImageEmbedder(SmallConvNet(), 8, norm="batch"),
        RecallAtKLoss(ks=(1, 2)),
        optimizer=partial(torch.optim.SGD, lr=0.25, weight_decay=0.125),
        lr_scheduler=partial(WarmupCosineLR, warmup=1),
        lr_interval="step",
        chunk_size=64,
    )
    data = GlyphsDataModule(root=str(glyph_folder), batch_size=64, samples_per_class=4, val_classes=20)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    limits = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0, "max_epochs": 2}
    trainer = Trainer(
        default_root_dir=folder, enable_checkpointing=False, callbacks=[RetrievalEvaluation((1,))], **quiet, **limits
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "trained.ckpt")
    (scores,) = trainer.test(module, data, verbose=False)
    return module, trainer, folder / "trained.ckpt", scores


def test_data_recipe_and_scores_are_recorded(tested, glyph_folder):
    module, trainer, _, scores = tested
    record = module.training_record
    assert record["scores"] == pytest.approx({key: value for key, value in scores.items() if key.startswith("test/")})
    assert record["scores"]["test/recall@1"] > 0
    train, test = trainer.datamodule.train_data.labels, trainer.datamodule.test_data.labels
    counts = {"images": len(train), "classes": len(np.unique(train))}
    assert record["data"]["train"] == counts
    assert record["data"]["val"]["classes"] == 20
    assert record["data"]["test"] == {"images": len(test), "classes": len(np.unique(test))}
    assert record["data"]["class"] == "GlyphsDataModule"
    assert record["recipe"] == {
        "initial weights": "random",
        "optimizer": "SGD",
        "learning rate": "0.25",
        "weight decay": 0.125,
        "scheduler": "WarmupCosineLR",
        "batch size": 64,
        "images per class in a batch": 4,
        "precision": "32-true",
        "epochs": 2,
    }
    assert str(glyph_folder) not in json.dumps(record)


def test_saved_models_and_checkpoints_hold_the_record(tested, tmp_path):
    module, _, checkpoint, _ = tested
    module.save_pretrained(tmp_path / "model")
    again = RetrievalModule.from_pretrained(tmp_path / "model")
    assert again.training_record == module.training_record
    card = (tmp_path / "model" / "README.md").read_text()
    recall = module.training_record["scores"]["test/recall@1"]
    assert f"| recall@1 | {recall:.4g} |" in card
    assert "| epochs | 2 |" in card
    assert "images, 20 classes |" in card
    before = RetrievalModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert "scores" not in before.training_record  # saved before the test
    assert before.training_record["recipe"] == module.training_record["recipe"]


def test_a_new_training_forgets_the_scores(tested, glyph_folder):
    module, _, checkpoint, _ = tested
    again = RetrievalModule.load_from_checkpoint(checkpoint, optimizer=torch.optim.SGD, lr_scheduler=None)
    again.training_record = module.training_record
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, enable_checkpointing=False, **quiet)
    trainer.fit(again, GlyphsDataModule(root=str(glyph_folder), batch_size=32, samples_per_class=4))
    assert "scores" not in again.training_record
    assert again.training_record["recipe"]["batch size"] == 32
    assert again.training_record["recipe"]["epochs"] == 1


def test_a_module_without_a_training_has_no_record():
    assert RetrievalModule(ImageEmbedder(SmallConvNet(), 8), RecallAtKLoss()).training_record == {}
