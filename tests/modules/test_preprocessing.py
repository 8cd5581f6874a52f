import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall._lightning import ModelCheckpoint, Trainer
from lightning_recall.data import ImageTransforms
from lightning_recall.datamodules import GlyphsDataModule, ImageFolderDataModule
from lightning_recall.models import SmallConvNet
from lightning_recall.modules.preprocessing import describe

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Brighter(nn.Module):
    """A transform of a user."""

    def forward(self, image):
        return tv.adjust_brightness(tv.resize(image, [32, 32]), 1.5)


def make_module():
    return RetrievalModule(ImageEmbedder(SmallConvNet(3), embedding_dim=16, norm="batch"), RecallAtKLoss())


def make_data(root, **transforms):
    chosen = ImageTransforms(**{"size": 32, **transforms})
    return ImageFolderDataModule(str(root), transforms=chosen, batch_size=8, samples_per_class=2, val_classes=1)


def trained(data, folder, module=None):
    """The module, loaded from the checkpoint of an epoch of training."""
    trainer = Trainer(max_epochs=1, callbacks=[ModelCheckpoint(folder, "trained")], **QUIET)
    trainer.fit(module or make_module(), data)
    rebuilt = {"embedder": make_module().embedder, "loss": RecallAtKLoss()}
    return RetrievalModule.load_from_checkpoint(folder / "trained.ckpt", weights_only=True, **rebuilt).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Classes of images in all colour modes, of 60 to 160 pixels; one is rotated by its EXIF data."""
    root = tmp_path_factory.mktemp("photos")
    for c in range(6):
        for i, mode in enumerate(("RGB", "L", "CMYK", "P")):
            suffix = "png" if mode == "P" else "jpg"
            draw(root / f"class {c}" / f"{i}.{suffix}", size=(60 + 25 * i, 80), mode=mode)
    exif = Image.Exif()
    exif[274] = 6  # the top of the picture is at the right of the file
    draw(root / "class 0" / "rotated.jpg", size=(160, 60), exif=exif)
    Image.fromarray(np.arange(90 * 70, dtype=np.uint16).reshape(70, 90) * 10).save(root / "class 1" / "16 bits.png")
    return root


@pytest.mark.parametrize("settings", [{}, {"resize": 40, "mode": "L"}, {"longest_side": 50}])
def test_images_are_preprocessed_as_in_evaluation(settings, photos):
    data = make_data(photos, **settings)
    data.setup("test")
    module = make_module()
    module.image_transforms = ImageTransforms(**{"size": 32, **settings})
    paths = sorted(photos.rglob("*.*"))
    for part in (data.train_data.select(slice(None)), data.val_data, data.test_data):
        for index in range(len(part)):
            expected, path = part[index][0], part.path(index)
            assert torch.equal(module.preprocess(path), expected)
            with Image.open(path) as image:
                before = image.size, image.format
                assert torch.equal(module.preprocess(image), expected)
                assert (image.size, image.format) == before  # not rotated in place
            paths.remove(photos / path)
    assert not paths  # all have been compared


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "RGB"), (3, "L"), (1, "L")])
def test_tensors_are_preprocessed_as_pictures(channels, mode):
    module = make_module()
    module.image_transforms = ImageTransforms(size=32, mode=mode)
    pixels = torch.randint(0, 256, (channels, 70, 50), dtype=torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy().squeeze())
    assert torch.equal(module.preprocess(pixels), module.preprocess(image))
    assert module.preprocess(pixels).shape == (len(mode), 32, 32)
    for wrong in (pixels.float(), pixels[0], pixels[None], torch.zeros(2, 9, 9, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"one image \(C, H, W\) uint8 with 1 or 3 channels, got"):
            module.preprocess(wrong)


def test_a_picture_that_is_in_the_index_is_found(photos, tmp_path):
    """With the checkpoint alone: similarity 1.00, also for a size that is not the default."""
    data = make_data(photos)
    module = trained(data, tmp_path)
    with torch.no_grad():
        index = torch.cat([module(images) for images, _ in data.test_dataloader()])
        for number in range(len(index)):
            query = module(module.preprocess(data.test_data.path(number))[None])
            similarities = (query @ index.T)[0]
            assert similarities.max() == pytest.approx(1, abs=1e-5)
            assert similarities[number] == pytest.approx(1, abs=1e-5)


def test_a_checkpoint_holds_plain_values(photos, tmp_path):
    module = trained(make_data(photos, resize=40, min_scale=0.5), tmp_path)
    assert module.image_transforms == ImageTransforms(size=32, resize=40)
    saved = torch.load(tmp_path / "trained.ckpt", weights_only=True)["preprocessing"]
    assert saved == {"size": 32, "resize": 40, "longest_side": None, "mode": "RGB", "reducing_gap": 2.0}


def test_a_transform_of_the_user_must_be_set_again(photos, tmp_path):
    module = trained(make_data(photos, eval_transform=Brighter()), tmp_path)
    path = next(photos.rglob("*.jpg"))
    with pytest.raises(ValueError, match="because its eval_transform Brighter is code, which checkpoints do not hold"):
        module.preprocess(path)
    trainer = Trainer(enable_checkpointing=False, **QUIET)
    trainer.test(module, make_data(photos, resize=44), verbose=False)  # nothing to compare with
    trainer.save_checkpoint(tmp_path / "again.ckpt")  # the name survives
    assert torch.load(tmp_path / "again.ckpt", weights_only=True)["preprocessing"] == {"custom": "Brighter"}
    module.image_transforms = ImageTransforms(eval_transform=Brighter())
    expected = make_data(photos, eval_transform=Brighter())
    expected.setup("test")
    data = expected.test_data
    assert torch.equal(module.preprocess(data.path(0)), data[0][0])


def test_a_new_training_replaces_a_transform_of_the_user(photos):
    module, data = make_module(), make_data(photos)
    module.custom_transform = "Brighter"  # as after loading a checkpoint
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(module, data)
    assert module.custom_transform is None
    with pytest.warns(UserWarning, match="so scores may be lower"):  # compared again
        trainer.test(module, make_data(photos, resize=44), verbose=False)


def test_other_transforms_in_the_test_warn(photos, tmp_path):
    module = trained(make_data(photos), tmp_path)
    trainer = Trainer(enable_checkpointing=False, **QUIET)
    trainer.test(module, make_data(photos, min_scale=0.9, flip=False), verbose=False)  # the same in evaluation
    other = make_data(photos, resize=44)
    for run in (trainer.test, trainer.predict, trainer.validate):
        with pytest.warns(UserWarning, match="so scores may be lower: set the same data") as caught:
            run(module, other)
        (message,) = [str(warning.message) for warning in caught if "data.transforms" in str(warning.message)]
        assert "on images with size=32, resize=37, mode=RGB, but" in message
        assert "makes images with size=32, resize=44, mode=RGB, so" in message
    assert module.image_transforms.resize == 37  # those of the training


def test_a_test_teaches_a_module_that_knows_no_transforms(photos):
    module = make_module()
    with pytest.raises(ValueError, match="not trained or tested with a data module that has ImageTransforms, or was"):
        module.preprocess(next(photos.rglob("*.jpg")))
    data = make_data(photos)
    Trainer(enable_checkpointing=False, **QUIET).test(module, data, verbose=False)
    assert torch.equal(module.preprocess(data.test_data.path(0)), data.test_data[0][0])


def test_old_checkpoints_and_data_without_files_have_no_preprocessing(glyph_folder, tmp_path):
    module = RetrievalModule(ImageEmbedder(SmallConvNet(), embedding_dim=8, norm="batch"), RecallAtKLoss())
    trainer = Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1, enable_checkpointing=False, **QUIET)
    trainer.fit(module, GlyphsDataModule(str(glyph_folder), batch_size=32))
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    assert "preprocessing" not in torch.load(tmp_path / "old.ckpt", weights_only=True)
    rebuilt = {"embedder": module.embedder, "loss": RecallAtKLoss()}
    loaded = RetrievalModule.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True, **rebuilt)
    with pytest.raises(ValueError, match=r"set module\.image_transforms = lightning_recall\.data\.ImageTransforms"):
        loaded.preprocess(torch.zeros(1, 32, 32, dtype=torch.uint8))


def test_only_settings_that_evaluation_uses_are_compared():
    resize = v2.Resize(100)
    assert describe(ImageTransforms(size=32)) == "size=32, resize=37, mode=RGB"
    assert describe(ImageTransforms(size=32, longest_side=64)) == describe(ImageTransforms(size=48, longest_side=64))
    same = [describe(ImageTransforms(size=size, eval_transform=resize)) for size in (32, 48)]
    assert same[0] == same[1]
    assert describe(ImageTransforms(eval_transform=v2.Resize(200))) != same[0]


def test_other_types_are_rejected():
    module = make_module()
    module.image_transforms = ImageTransforms(size=32)
    with pytest.raises(ValueError, match=r"^preprocess takes a path, a PIL image or a tensor, got ndarray\.$"):
        module.preprocess(np.zeros((3, 8, 8), np.uint8))
