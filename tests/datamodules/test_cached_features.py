import os
from functools import partial

import numpy as np
import pytest
import torch
from conftest import draw
from torch import nn
from torchvision.transforms.v2 import functional

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalEvaluation, RetrievalModule
from lightning_recall._lightning import Callback, LightningModule, ModelCheckpoint, Trainer
from lightning_recall.data import ImagesInMemory, ImageTransforms
from lightning_recall.datamodules import (
    CachedFeaturesDataModule,
    GlyphsDataModule,
    ImageFolderDataModule,
    RetrievalDataModule,
)
from lightning_recall.datamodules.cached_features import check_no_device_augmentation
from lightning_recall.models import LoRAEmbedder

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
WEIGHT = "embedder.projection.1.weight"


class Backbone(nn.Module):
    """Counts the images that it embeds."""

    num_features = 12

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 12, 5, stride=3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        )
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return self.layers(images)


class HeadModule(RetrievalModule):
    """A module that trains only the head of its embedder."""

    def __init__(self, lr=0.05, unfreeze_epoch=None, **kwargs):
        torch.manual_seed(3)
        optimizer = partial(torch.optim.Adam, lr=lr)
        embedder = ImageEmbedder(Backbone(), embedding_dim=6)
        super().__init__(embedder, RecallAtKLoss(), optimizer=optimizer, unfreeze_epoch=unfreeze_epoch, **kwargs)


class NoisyData(RetrievalDataModule):
    """Images in memory, of 12 classes."""

    means = (60, 200)  # range of the mean colours of the classes

    def read(self):
        generator = np.random.default_rng(0)
        labels = np.repeat(np.arange(12), 6)
        means = generator.integers(*self.means, (12, 3, 1, 1))[labels]
        images = (means + generator.integers(-55, 55, (72, 3, 20, 20))).astype(np.uint8)
        data = ImagesInMemory(images, labels)
        data.is_query = np.arange(72) % 6 < 4
        data.groups = np.arange(72) % 3
        return {"train": data.select(labels < 8), "test": data.select(labels >= 8)}


def noisy(**kwargs):
    settings = {"batch_size": 16, "samples_per_class": 4, "val_classes": 2, "check_duplicates": False}
    return NoisyData(**{**settings, **kwargs})


def fit(module, data, epochs=3, **kwargs):
    evaluation = RetrievalEvaluation(ks=(1, 2))
    trainer = Trainer(max_epochs=epochs, callbacks=[evaluation], enable_checkpointing=False, **{**QUIET, **kwargs})
    trainer.fit(module, data)
    return trainer


def photos(root, classes=8, images=4):
    for c in range(classes):
        for i in range(images):
            draw(root / f"class {c}" / f"{i}.png", size=(40 + 5 * i, 36))
    return root


def folder_data(root, **kwargs):
    settings = {"batch_size": 8, "samples_per_class": 2, "val_classes": 2, "test_classes": 1}
    return ImageFolderDataModule(str(root), **{"transforms": ImageTransforms(size=24), **settings, **kwargs})


@pytest.mark.parametrize("chunk_size", [5, 16])
def test_the_head_gets_the_weights_of_a_training_on_images(chunk_size):
    """In float64, with the same batches; each image goes through the backbone once."""
    results = []
    for data in (noisy(chunk_size=chunk_size), CachedFeaturesDataModule(noisy(), chunk_size=chunk_size)):
        module = HeadModule(chunk_size=chunk_size)
        before = module.embedder.projection[1].weight.detach().clone()
        trainer = fit(module, data, precision="64-true", num_sanity_val_steps=0)
        assert not torch.allclose(module.embedder.projection[1].weight, before.double(), atol=1e-3)
        results.append((module, trainer.callback_metrics))
    (images, image_metrics), (features, feature_metrics) = results
    for name, value in images.state_dict().items():
        torch.testing.assert_close(features.state_dict()[name], value, rtol=1e-10, atol=1e-12)
    assert set(image_metrics) == set(feature_metrics)
    assert {"val/recall@1", "train/loss"} <= set(image_metrics)
    for name, value in image_metrics.items():
        assert float(feature_metrics[name]) == pytest.approx(float(value), abs=1e-10)
    assert features.embedder.backbone.images == 36 + 12  # training and validation
    assert images.embedder.backbone.images >= 3 * 12 + 3 * 16


def with_lora(module):
    """The module with LoRA matrices in its backbone that are not 0, as after a training."""
    pytest.importorskip("peft")  # an extra
    module.embedder = LoRAEmbedder(module.embedder, rank=2)
    for name, parameter in module.embedder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return module


def test_lora_matrices_stay_as_they_are_and_are_part_of_the_features():
    results = []
    for data in (noisy(), CachedFeaturesDataModule(noisy())):
        module = with_lora(HeadModule(chunk_size=16))
        before = {name: value.clone() for name, value in module.embedder.backbone.state_dict().items()}
        fit(module, data, precision="64-true", num_sanity_val_steps=0)
        assert any("lora_B" in name for name in before)
        assert all(torch.equal(module.embedder.backbone.state_dict()[name], before[name].double()) for name in before)
        results.append(module.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-10, atol=1e-12)
    without = CachedFeaturesDataModule(noisy())
    fit(HeadModule(), without, epochs=1, precision="64-true")
    assert not torch.allclose(without.train_data.features, data.train_data.features, atol=1e-2)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_backbones_of_timm(name):
    """Tokens or maps, pooled; GeM's exponent is not trained."""
    results = []
    settings = {"test_vit": {"backbone_kwargs": {"img_size": 32}}, "test_efficientnet": {"norm": "batch"}}
    for data in (noisy(chunk_size=16), CachedFeaturesDataModule(noisy())):
        torch.manual_seed(3)
        data_images = getattr(data, "data", data)
        data_images.read = partial(read_scaled, data_images.read)
        embedder = ImageEmbedder(name, [10, 6], pretrained=False, **settings[name])
        module = RetrievalModule(embedder, RecallAtKLoss(), unfreeze_epoch=None, chunk_size=16)
        head = next(embedder.head.parameters()).detach().clone()
        trainer = fit(module, data, epochs=2, precision="64-true", num_sanity_val_steps=0)
        assert not torch.equal(next(embedder.head.parameters()), head.double())
        results.append((module.state_dict(), trainer.callback_metrics))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-8, atol=1e-10)
    assert float(results[1][1]["val/map@r"]) == pytest.approx(float(results[0][1]["val/map@r"]), abs=1e-10)


def read_scaled(read):
    """Images of 32 instead of 20 pixels."""
    parts = read()
    for data in parts.values():
        data.images = functional.resize(data.images, [32, 32], antialias=True)
    return parts


def test_baselines_are_those_of_images():
    """Validation batches are features, which have no pixels; the test uses images."""
    results = []
    for cached in (False, True):
        data = noisy()
        data.means = (120, 128)
        data = CachedFeaturesDataModule(data) if cached else data
        module, evaluation = HeadModule(), RetrievalEvaluation(ks=(1, 2), baselines=True)
        trainer = Trainer(
            max_epochs=2, callbacks=[evaluation], enable_checkpointing=False, precision="64-true", **QUIET
        )
        trainer.fit(module, data)
        assert evaluation.history.baselines.keys() == {"backbone before training", "before training"}
        (tested,) = trainer.test(module, data, verbose=False)
        results.append((evaluation.history.baselines, tested))
    (images, image_test), (features, feature_test) = results
    for name, scores in images.items():
        assert features[name] == pytest.approx(scores, abs=1e-10)
    assert 0.2 < images["backbone before training"]["val/map@r"] < 1
    assert {"test/pixels/recall@1", "test/pretrained/recall@1", "test/untrained/recall@1"} <= image_test.keys()
    assert feature_test == pytest.approx(image_test, abs=1e-10)


def test_test_and_predict_use_images_and_give_the_same_embeddings():
    module, data = HeadModule(), CachedFeaturesDataModule(noisy(eval_batch_size=12))
    trainer = fit(module, data)
    features = data.val_data.features[:, 0]
    for run in (trainer.validate, trainer.test):
        seen = module.embedder.backbone.images
        (scores,) = run(module, data, verbose=False)
        assert module.embedder.backbone.images > seen
    assert scores["test/recall@1"] > 0.5
    images, _ = next(iter(data.data.val_dataloader()))
    module.eval()
    with torch.no_grad():
        assert torch.equal(module(images), module(features))
        predicted = torch.cat(trainer.predict(module, data))
        expected = torch.cat([module(images) for images, _ in data.data.test_dataloader()])
    assert torch.equal(predicted, expected)


def test_what_evaluation_reads_is_passed_through(tmp_path):
    data = CachedFeaturesDataModule(noisy())
    fit(HeadModule(), data)
    for part, images in ((data.train_data, data.data.train_data), (data.val_data, data.data.val_data)):
        assert part.features.shape == (len(images), 1, 12)
        for name in ("labels", "is_query", "groups"):
            assert np.array_equal(getattr(part, name), getattr(images, name))
    files = CachedFeaturesDataModule(folder_data(photos(tmp_path)))
    fit(HeadModule(), files)
    assert files.val_data.class_names == files.data.val_data.class_names
    assert files.val_data.path(3) == files.data.val_data.path(3)
    assert files.transforms == ImageTransforms(size=24, resize=27)  # for module.preprocess
    assert not hasattr(files.val_data, "ground_truth")


def test_views_are_augmented_and_drawn_at_random(tmp_path):
    data = CachedFeaturesDataModule(folder_data(photos(tmp_path)), views=3)
    fit(HeadModule(), data, epochs=1)
    features = data.train_data.features  # (N, 3, F)
    assert features.shape[1:] == (3, 12)
    assert all(len(torch.unique(views, dim=0)) == 3 for views in features)
    drawn = {tuple(data.train_data[0][0].tolist()) for _ in range(50)}
    assert drawn == {tuple(view.tolist()) for view in features[0]}
    assert data.val_data.features.shape[1] == 1
    again = CachedFeaturesDataModule(folder_data(tmp_path), views=3)
    torch.manual_seed(9)
    fit(HeadModule(), again, epochs=1)
    assert torch.equal(again.train_data.features, features)  # whatever the state of the generators
    other = CachedFeaturesDataModule(folder_data(tmp_path, seed=1, val_classes=2), views=3)
    fit(HeadModule(), other, epochs=1)
    assert not torch.equal(other.train_data.features, features)
    plain = CachedFeaturesDataModule(folder_data(tmp_path))
    module = HeadModule()
    fit(module, plain, epochs=1)
    images = torch.stack([image for image, _ in plain.data.train_data.select(slice(None))])
    module.eval()
    torch.testing.assert_close(plain.train_data.features[:, 0], module.embedder.features(images))


@pytest.mark.filterwarnings("ignore:The gradient of this batch vanishes")  # of these features
def test_augmentation_on_the_device_is_applied_to_views(glyph_folder):
    class GreyModule(HeadModule):
        def __init__(self):
            super().__init__()
            self.embedder.features = lambda images: images.float().flatten(1)[:, 16::32] + 1
            self.embedder.num_features, self.embedder.projection = 32, nn.Linear(32, 4)

    glyphs = GlyphsDataModule(str(glyph_folder), batch_size=64, val_classes=0.2)
    data = CachedFeaturesDataModule(glyphs, views=2)
    fit(GreyModule(), data, epochs=1, limit_train_batches=1)
    plain = glyphs.train_data.images.float().flatten(1)[:, 16::32] + 1
    changed = (data.train_data.features != plain[:, None]).any(2)
    assert changed.float().mean() > 0.9
    assert torch.equal(data.val_data.features[:, 0], glyphs.val_data.images.float().flatten(1)[:, 16::32] + 1)


def test_augmentation_on_the_device_is_not_kept_in_a_folder(glyph_folder, tmp_path):
    check_no_device_augmentation(ImageFolderDataModule(str(tmp_path)))
    with pytest.raises(ValueError, match=r"^GlyphsDataModule augments in on_after_batch_transfer, .*: omit folder"):
        check_no_device_augmentation(GlyphsDataModule(str(glyph_folder)))


def test_features_are_computed_again_only_if_they_change():
    data, module = CachedFeaturesDataModule(noisy()), HeadModule()
    fit(module, data, epochs=1)
    assert module.embedder.backbone.images == 48
    fit(module, data, epochs=1)  # the head has changed, the backbone has not
    assert module.embedder.backbone.images == 48
    with torch.no_grad():
        module.embedder.backbone.layers[0].weight.mul_(2)
    fit(module, data, epochs=1)
    assert module.embedder.backbone.images == 96
    before = data.val_data.features
    fit(HeadModule(), data, epochs=1, precision="64-true")
    assert data.val_data.features.dtype == torch.float64
    assert before.dtype == torch.float32


def embedded(root, folder, scale=1.0, **kwargs):
    """Number of images that a training embeds with features kept in a folder; and the features."""
    module, data = HeadModule(), CachedFeaturesDataModule(folder_data(root, **kwargs), folder=str(folder))
    with torch.no_grad():
        module.embedder.backbone.layers[0].weight.mul_(scale)
    fit(module, data, epochs=1)
    return module.embedder.backbone.images, data.train_data.features


def test_a_folder_keeps_features_until_something_changes(tmp_path, caplog):
    root, folder = photos(tmp_path / "photos"), tmp_path / "features"
    count, features = embedded(root, folder)
    assert count == 28
    assert sorted(path.name for path in folder.iterdir()) == ["train.safetensors", "val.safetensors"]
    assert embedded(root, folder)[0] == 0
    assert torch.equal(embedded(root, folder)[1], features)

    def changes(name, *args, **kwargs):
        caplog.clear()
        count, new = embedded(*args, **kwargs)
        assert f"was made with other {name}: embedding the images again" in caplog.text
        assert not torch.equal(new, features)
        return count

    assert changes("weights", root, folder, scale=2.0) == 28
    assert changes("weights and transforms", root, folder, transforms=ImageTransforms(size=20)) == 28
    embedded(root, folder)
    for path in root.rglob("*.png"):
        draw(path, size=(33, 31))
        os.utime(path, (1, 1))
    assert changes("images", root, folder) == 28
    (folder / "train.safetensors").write_bytes(b"broken")
    assert embedded(root, folder)[0] == 20
    assert "cannot be read" in caplog.text
    assert embedded(root, folder)[0] == 0


def test_features_of_other_views_seeds_and_precisions_are_computed_again(tmp_path):
    root, counts = photos(tmp_path / "photos"), []
    for views, seed, precision in [(2, 0, "32"), (2, 0, "32"), (3, 0, "32"), (3, 1, "32"), (3, 1, "bf16-mixed")]:
        module = HeadModule()
        cached = CachedFeaturesDataModule(folder_data(root), views, folder=str(tmp_path / "features"))
        cached.seed = seed  # of the augmentations; the split stays
        fit(module, cached, epochs=1, precision=precision)
        counts.append(module.embedder.backbone.images)
    assert counts == [2 * 20 + 8, 0, 3 * 20, 3 * 20, 3 * 20 + 8]


@pytest.mark.filterwarnings("ignore:Cannot read the image")  # the sum is tested
def test_unreadable_images_are_replaced_in_training_and_ignored_in_evaluation(tmp_path):
    data = folder_data(photos(tmp_path), num_workers=0)
    data.setup("fit")
    for part in (data.train_data, data.val_data):
        with open(part.path(1), "wb") as file:
            file.write(b"broken")
    cached = CachedFeaturesDataModule(data)
    with pytest.warns(UserWarning, match="1 of .* image files could not be read"):
        fit(HeadModule(), cached, num_sanity_val_steps=0)
    assert torch.equal(cached.train_data.features[1], cached.train_data.features[2])
    assert [int(cached.val_data[index][1]) < 0 for index in range(4)] == [False, True, False, False]
    assert min(int(cached.train_data[index][1]) for index in range(12)) >= 0


def test_a_checkpoint_of_the_head_resumes_to_the_bit(tmp_path):
    whole, first, second = HeadModule(), HeadModule(), HeadModule()
    fit(whole, CachedFeaturesDataModule(noisy(), views=2), epochs=4)
    checkpoint = ModelCheckpoint(tmp_path, "half", save_last=False)
    trainer = Trainer(max_epochs=2, callbacks=[checkpoint, RetrievalEvaluation(ks=(1,))], **QUIET)
    trainer.fit(first, CachedFeaturesDataModule(noisy(), views=2))
    with torch.no_grad():  # the checkpoint restores the backbone before the images are embedded
        second.embedder.backbone.layers[0].weight.zero_()
    checkpoint = ModelCheckpoint(tmp_path / "second")
    trainer = Trainer(max_epochs=4, callbacks=[checkpoint, RetrievalEvaluation(ks=(1,))], **QUIET)
    trainer.fit(second, CachedFeaturesDataModule(noisy(), views=2), ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_processes_share_the_images_and_have_all_features(tmp_path):
    whole = CachedFeaturesDataModule(noisy(eval_batch_size=5))
    module = HeadModule()
    fit(module, whole, precision="64-true")
    shared = CachedFeaturesDataModule(noisy(eval_batch_size=5))

    class Save(Callback):
        def on_train_end(self, trainer, pl_module):
            count = pl_module.embedder.backbone.images
            saved = shared.train_data.features, count, pl_module.state_dict()[WEIGHT]
            torch.save(saved, tmp_path / f"{trainer.global_rank}.pt")

    other, settings = HeadModule(), {**QUIET, "precision": "64-true", "enable_checkpointing": False}
    trainer = Trainer(max_epochs=3, strategy="ddp_fork", devices=2, callbacks=[Save()], **settings)
    trainer.fit(other, shared)
    for rank in range(2):
        features, count, weight = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(features, whole.train_data.features, rtol=0, atol=1e-12)
        assert count < 36
        torch.testing.assert_close(weight, module.state_dict()[WEIGHT], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (HeadModule(unfreeze_epoch=2), "the backbone must stay frozen: set unfreeze_epoch"),
        (HeadModule(unfreeze_epoch=0), "the backbone must stay frozen: set unfreeze_epoch"),
        (RetrievalModule(nn.Linear(2, 2), RecallAtKLoss(), unfreeze_epoch=None), "has no method `features`"),
    ],
)
def test_modules_that_cannot_train_on_features_are_rejected_before_training(module, message):
    with pytest.raises(ValueError, match=message):
        fit(module, CachedFeaturesDataModule(noisy()))


def test_a_module_without_unfreeze_epoch_needs_a_frozen_backbone():
    class Own(LightningModule):
        """Trains the head of an embedder by Lightning's own optimization."""

        def __init__(self):
            super().__init__()
            self.embedder = ImageEmbedder(Backbone(), embedding_dim=6)
            self.backbone = self.embedder.backbone.requires_grad_(False)
            self.loss = RecallAtKLoss()

        def forward(self, images):
            return self.embedder(images)

        def training_step(self, batch, batch_idx):
            inputs, labels = (torch.cat(parts) for parts in zip(*batch, strict=True))
            return self.loss(self(inputs), labels)

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.embedder.projection.parameters(), lr=0.1)

    module = Own()
    fit(module, CachedFeaturesDataModule(noisy()), epochs=2)
    assert module.backbone.images == 48
    module.backbone.layers[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match="must stay frozen"):
        fit(module, CachedFeaturesDataModule(noisy()), epochs=1)


def test_invalid_settings_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="views must be"):
        CachedFeaturesDataModule(noisy(), views=0)
    with pytest.raises(ValueError, match="not another CachedFeaturesDataModule"):
        CachedFeaturesDataModule(CachedFeaturesDataModule(noisy()))
    data = CachedFeaturesDataModule(noisy())
    data.setup("fit")
    with pytest.raises(ValueError, match=r"pass it to Trainer\.fit"):
        data.train_dataloader()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"Cannot write features to .*file: choose another folder"):
        fit(HeadModule(), CachedFeaturesDataModule(noisy(), folder=str(tmp_path / "file")))


CONFIG = """
seed_everything: 0
model:
  class_path: RetrievalModule
  init_args:
    embedder: {class_path: ImageEmbedder, init_args: {backbone: resnet10t, pretrained: false, embedding_dim: 8}}
    loss: {class_path: RecallAtKLoss}
    chunk_size: 64
data:
  class_path: CachedFeaturesDataModule
  init_args:
    data:
      class_path: ImageFolderDataModule
      init_args: {root: photos, batch_size: 8, samples_per_class: 2, val_classes: 2, transforms: {size: 32}}
trainer: {max_epochs: 1, logger: false, enable_checkpointing: false, enable_progress_bar: false}
"""


def test_a_config_file_and_options_of_the_command(command, in_tmp_path):
    photos(in_tmp_path / "photos")
    (in_tmp_path / "config.yaml").write_text(CONFIG)
    options = ["--data.views", 2, "--data.data.num_workers", 0, "--data.data.transforms.flip", "false"]
    with pytest.raises(ValueError, match=r"--model\.unfreeze_epoch null"):  # the default trains the backbone
        command("fit", "--config", "config.yaml", *options)
    command("fit", "--config", "config.yaml", *options, "--model.unfreeze_epoch", "null")


def test_errors_of_the_sampler_come_before_the_embedding():
    module = HeadModule()
    with pytest.raises(ValueError, match="A batch needs batch_size / samples_per_class"):
        fit(module, CachedFeaturesDataModule(noisy(batch_size=4096)), epochs=1)
    assert module.embedder.backbone.images == 0
