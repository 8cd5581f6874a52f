import json
import sys

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.adaptation.callbacks import cluster_agreement
from lightning_recall.adaptation.callbacks.cluster_agreement import ClusterAgreement, class_ami
from lightning_recall.adaptation.source_only import SourceOnlyModule

pytestmark = pytest.mark.filterwarnings("ignore:Number of distinct clusters")

K = 3


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % K
    images = 0.2 * torch.rand(count, 3, 2, 2, generator=generator) + 0.3 * labels[:, None, None, None]
    return images, labels


def loader(count=22, seed=0):
    return DataLoader(TensorDataset(*draw(count, seed)), batch_size=5)


def make():
    torch.manual_seed(0)
    return SourceOnlyModule(nn.Flatten(), nn.Linear(12, K), K)


def trainer_of(folder, *callbacks, **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 1, "logger": False}
    settings = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet, **kwargs}
    return Trainer(default_root_dir=folder, callbacks=[*callbacks], **settings)


def expected(count=22, seed=0):
    images, _ = draw(count, seed)
    module = make().double()
    clusters = KMeans(K, n_init=1, random_state=0).fit_predict(images.flatten(1).numpy())
    return adjusted_mutual_info_score(module(images.double()).argmax(1).numpy(), clusters)


@pytest.mark.parametrize("loaders", [{"source": loader(9, 1), "target": loader()}, loader(), {"target": loader()}])
def test_the_score_of_an_evaluation(loaders, tmp_path):
    trainer = trainer_of(tmp_path, ClusterAgreement())
    for run, split in ((trainer.validate, "val"), (trainer.test, "test")):
        run(make(), loaders, verbose=False)
        assert trainer.callback_metrics[f"{split}/target/class_ami"].item() == pytest.approx(expected(), abs=1e-6)


def test_without_target_images_nothing_is_logged(tmp_path):
    trainer = trainer_of(tmp_path, ClusterAgreement())
    trainer.validate(make(), {"source": loader()}, verbose=False)
    assert not any("class_ami" in key for key in trainer.callback_metrics)


def test_a_checkpoint_may_be_chosen_by_it(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="val/target/class_ami", mode="max")
    trainer = trainer_of(tmp_path, ClusterAgreement(), saving, enable_checkpointing=True, max_epochs=2)
    images, labels = draw(6)
    batch = {"source": (images, labels), "target": images}
    trainer.fit(make(), DataLoader([batch], batch_size=None), {"source": loader(9, 1), "target": loader()})
    assert -1 < saving.best_model_score <= 1


def test_the_score():
    features = torch.tensor([[0.0, 0], [0.1, 0], [9, 9], [9.1, 9], [0, 9], [0, 9.1]])
    assert class_ami(features, torch.tensor([2, 2, 0, 0, 1, 1]), K) == pytest.approx(1)
    assert class_ami(features, torch.tensor([0, 1, 0, 1, 0, 1]), K) < 0.1
    with pytest.raises(ValueError, match="needs at least 3 target images, got 2"):
        class_ami(features[:2], torch.tensor([0, 1]), K)
    with pytest.raises(ValueError, match="finite features: the training has diverged"):
        class_ami(features / 0, torch.tensor([0, 1, 0, 1, 0, 1]), K)


def test_other_modules_must_return_features(tmp_path):
    class Other(LightningModule):
        def validation_step(self, batch, batch_idx):
            return torch.zeros(())

    with pytest.raises(ValueError, match=r'return \{"predictions": .* got a tensor \(\)'):
        trainer_of(tmp_path, ClusterAgreement()).validate(Other(), loader(), verbose=False)


def test_scikit_learn_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"pip install lightning-recall\[nmi\]"):
        ClusterAgreement()


class Notes(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, trainer, pl_module):
        value = trainer.callback_metrics["val/target/class_ami"].item()
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(value))
        trainer.strategy.barrier()


def test_two_processes_score_like_one(tmp_path, monkeypatch):
    """The order of the images differs, so k-means starts from others; of clear clusters it finds the same."""

    def checked(features, classes, *args):
        assert len(features) == len(classes) == 23  # none twice
        return class_ami(features, classes, *args)

    monkeypatch.setattr(cluster_agreement, "class_ami", checked)
    callbacks = ClusterAgreement(), Notes(tmp_path)
    trainer = trainer_of(tmp_path, *callbacks, devices=2, strategy="ddp_fork")
    trainer.validate(make(), {"source": loader(9, 1), "target": loader(23, 2)}, verbose=False)
    scores = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert scores == pytest.approx([expected(23, 2)] * 2, abs=1e-6)
