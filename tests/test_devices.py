"""What must hold on a GPU, as far as it shows without one: nothing is left on the CPU, nothing waits in a loop."""

import copy

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from other_device import DEVICE, other_device
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.utils._pytree import tree_leaves

from lightning_recall import losses
from lightning_recall.callbacks import (
    EmbeddingWriter,
    EvaluationCharts,
    EvaluationReport,
    InterruptCheckpoint,
    RetrievalEvaluation,
    RetrievedImages,
    RunSummary,
    TrainingCurves,
)
from lightning_recall.data.augment import random_affine
from lightning_recall.datamodules import GlyphsDataModule
from lightning_recall.losses import pairwise, parts, uniloss
from lightning_recall.metrics import (
    ClusterNMI,
    OpenSetScores,
    RetrievalScores,
    RevisitedMAP,
    SingleGalleryShotCMC,
    VerificationScores,
)
from lightning_recall.metrics.revisited import GroundTruth
from lightning_recall.mixup import SimilarityMixup
from lightning_recall.models import ImageEmbedder, MultiScale, PCAWhitening, SmallConvNet
from lightning_recall.modules import RetrievalModule
from lightning_recall.recompute import chunked_forward
from lightning_recall.search import EmbeddingBlocks, expand_queries, k_reciprocal_similarities, nearest, ranks

LABELS = torch.arange(60) // 4
LOSSES = {
    "RecallAtK": losses.RecallAtKLoss,
    "RecallAtK, as published": lambda: losses.RecallAtKLoss(count_query=True),
    "SmoothAP": losses.SmoothAPLoss,
    "SupAP": losses.SupAPLoss,
    "SupRecallAtK": losses.SupRecallAtKLoss,
    "UniLoss": losses.UniLoss,
    "Circle": losses.CircleLoss,
    "contrastive": losses.ContrastiveLoss,
    "proxy softmax": lambda: losses.NormalizedSoftmaxLoss(15, 16),
    "proxy anchor": lambda: losses.ProxyAnchorLoss(15, 16),
    "sum": lambda: losses.MultipleLosses([losses.RecallAtKLoss(), losses.ProxyAnchorLoss(15, 16)], [1.0, 0.1]),
    "memory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 100, 16),
}


def embeddings():
    return F.normalize(torch.randn(15, 16).repeat_interleave(4, 0) + torch.randn(60, 16), dim=1).double()


def value_and_gradients(loss, given, labels, mixup):
    leaf = given.detach().requires_grad_()
    value = loss(leaf, labels, **({"pairs": mixup.draw(labels)} if mixup else {}))
    return [value.detach(), *torch.autograd.grad(value, [leaf, *loss.parameters()])]


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "SiMix"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same_elsewhere(name, mixed):
    given, here = embeddings(), LOSSES[name]().double()
    mixed = mixed and getattr(here, "accepts_virtual", False)
    there = copy.deepcopy(here)
    expected = value_and_gradients(here, given, LABELS, SimilarityMixup() if mixed else None)
    with other_device():
        mixup = SimilarityMixup() if mixed else None
        found = value_and_gradients(there.to(DEVICE), given.to(DEVICE), LABELS.to(DEVICE), mixup)
        found = [part.to("cpu") for part in found]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


def waits_and_operations(name, block, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_QUERIES", 1)
    monkeypatch.setattr(parts, "GPU_ELEMENTS", block)
    monkeypatch.setattr(pairwise, "GPU_BLOCK_ELEMENTS", block)
    monkeypatch.setattr(uniloss, "GPU_PART_ELEMENTS", block)
    given, loss = embeddings(), LOSSES[name]().double()
    with other_device() as device:
        value_and_gradients(loss, given.to(DEVICE), LABELS.to(DEVICE), SimilarityMixup())
    return sum(device.waits.values()), sum(device.operations.values())


@pytest.mark.parametrize("name", ["RecallAtK", "SmoothAP", "SupAP", "SupRecallAtK", "Circle", "contrastive"])
def test_no_block_waits_for_the_device(name, monkeypatch):
    waits, operations = waits_and_operations(name, 2**25, monkeypatch)
    waits_of_many, operations_of_many = waits_and_operations(name, 600, monkeypatch)  # 4 rows a block
    assert waits_of_many == waits <= 20
    assert operations_of_many > 5 * operations


def test_blocks_are_large_there():
    """65,536 queries: some 70 kernels a part, at 5 microseconds each, take less than the products on any GPU."""
    labels = torch.arange(65_536) // 4
    few = [sum(map(len, blocks_of(labels.to(device)))) for device in ("cpu", "meta")]
    assert few[0] > 5_000
    assert few[1] <= 512
    assert np.prod(ranks.block_shape(DEVICE)) == 32 * np.prod(ranks.block_shape(torch.device("cpu")))


def blocks_of(labels):
    size = len(labels)
    return parts.split_into_blocks([3] * size, size, *parts.block_limits(size, labels.device))


def scores_of(metric, *given):
    metric._device = given[0].device  # as `metric.to` would
    metric.update(*given)
    return metric.compute()


TRUTH = [GroundTruth([0, 1], [2], [3]), GroundTruth([], [7, 9], [])]
EVALUATIONS = {
    "scores": lambda e, y: scores_of(RetrievalScores(("recall", "map@r", "mrr"), ks=(1, 10)), e, y),
    "many positives": lambda e, y: scores_of(RetrievalScores(("recall", "map"), ks=(1,)), e, y // 200),
    "revisited": lambda e, y: scores_of(RevisitedMAP(TRUTH), e, y, torch.arange(len(y), device=y.device)),
    "verification": lambda e, y: scores_of(VerificationScores((0.1, 0.01)), e, y),
    "open set": lambda e, y: scores_of(
        OpenSetScores(0.5, (0.1,)), e, torch.where(y > 3, y, -1 - torch.arange(len(y), device=y.device))
    ),
    "single gallery shot": lambda e, y: scores_of(SingleGalleryShotCMC((1, 5)), e[:60], y[:60]),
    "clusters": lambda e, y: scores_of(ClusterNMI(), e, y),
    "nearest": lambda e, _: nearest(
        EmbeddingBlocks(e, device=e.device), EmbeddingBlocks([e[:20], e[20:]], device=e.device), 5
    ),
    "expansion": lambda e, _: expand_queries(e[:10], e[10:], 5),
    "re-ranking": lambda e, _: k_reciprocal_similarities(e[:10], e[10:]),
    "whitening": lambda e, _: PCAWhitening(e, 8)(e).abs(),  # up to the sign
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_scores_are_the_same_elsewhere(name):
    pytest.importorskip("sklearn") if name == "clusters" else None  # an extra
    centres = torch.randn(250, 16).repeat_interleave(4, 0)
    given, labels = centres + torch.randn(1000, 16), torch.arange(1000) // 4
    given[5] = given[7]  # a tie
    expected = tree_leaves(EVALUATIONS[name](given, labels))
    with other_device():
        found = [leaf.to("cpu") for leaf in tree_leaves(EVALUATIONS[name](given.to(DEVICE), labels.to(DEVICE)))]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)


def test_chunks_go_there_one_by_one():
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    net = ImageEmbedder("resnet18", pretrained=False, norm="batch").train()
    copies = net, copy.deepcopy(net)

    def step(net, device):
        found = chunked_forward(net, images, 5, device=device)
        found[:, :3].square().sum().backward()
        return [found, *(p.grad for p in net.parameters()), *net.buffers()]

    expected = step(copies[0], "cpu")
    with other_device():
        found = [part.detach().to("cpu") for part in step(copies[1].to(DEVICE), DEVICE)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_images_are_augmented_and_viewed_there():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    net = ImageEmbedder("resnet18", pretrained=False).eval()
    expected = MultiScale()(net, images), random_affine(images)
    with other_device() as device, torch.no_grad():
        away = images.to(DEVICE)
        found = MultiScale()(net.to(DEVICE), away).to("cpu"), random_affine(away).to("cpu")
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    assert expected[1].shape == found[1].shape
    assert sum(device.waits.values()) == 2  # what the test reads


class Other(Accelerator):
    """That device, for a Trainer."""

    def setup_device(self, device):
        assert device == DEVICE

    def teardown(self): ...

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [DEVICE] * devices

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return "other"

    def get_device_stats(self, device):
        return {}


def run(folder, glyphs, **trainer):
    """Trains for six steps and tests, with all callbacks: the scores."""
    pl.seed_everything(0)
    net = ImageEmbedder(SmallConvNet(), embedding_dim=32, norm="batch")
    loss = losses.MultipleLosses([losses.RecallAtKLoss(), losses.ProxyAnchorLoss(2000, 32)])
    given = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2, "chunk_size": 64}
    module = RetrievalModule(net, loss, mixup=SimilarityMixup(), loss_lr=0.1, **given)
    data = GlyphsDataModule(root=glyphs, batch_size=128, val_classes=0.2)
    drawn = [RetrievedImages(), EvaluationCharts(), EvaluationReport(), TrainingCurves()]
    added = [RetrievalEvaluation(ks=[1, 2], baselines=True), EmbeddingWriter(), RunSummary(), InterruptCheckpoint()]
    trainer = pl.Trainer(
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=1,
        limit_test_batches=2,
        log_every_n_steps=1,
        callbacks=[*drawn, *added],
        enable_checkpointing=False,  # torch does not write such tensors,
        inference_mode=False,  # nor use them there
        logger=CSVLogger(folder),
        **trainer,
    )
    trainer.fit(module, data)
    (scores,) = trainer.test(module, data)
    (embeddings, *_) = trainer.predict(module, data, return_predictions=True)
    return scores | {"embeddings": embeddings}, sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_run_is_the_same_elsewhere(tmp_path, glyph_folder):
    scores, files = run(tmp_path / "here", glyph_folder, accelerator="cpu")
    with other_device():
        strategy = SingleDeviceStrategy(DEVICE, accelerator=Other())
        found, found_files = run(tmp_path / "there", glyph_folder, strategy=strategy)
        found["embeddings"] = found["embeddings"].to("cpu")
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)
    assert scores["test/recall@1"] != scores["test/untrained/recall@1"]
    assert found_files == files


def test_a_mixture_of_devices_is_found():
    with other_device() as device:
        there = torch.arange(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.arange(3)
        with pytest.raises(RuntimeError, match="two devices"):
            torch.arange(3)[there]
        assert (there + 1).tolist() == [1, 2, 3]
        assert int(there.sum()) == 3
    assert sum(device.waits.values()) == 2
