from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from sklearn.metrics import jaccard_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.segmentation.callbacks import SegmentedImages

NAME = "lightning_recall.segmentation.callbacks.segmented_images"


class Brightness(pl.LightningModule):
    """Predicts the classes 0, 1 and 2 from the brightness of a pixel."""

    class_names = ("dark", "grey", "bright")

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return {"predictions": self.predictions(batch[0])}

    def predictions(self, images):
        return (images.float().mean(1) / 86).long().clamp(0, 2)


def data(count=12, dtype=torch.uint8):
    """Images, and masks that agree more with the predictions the larger the index is; the last is all ignored."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 20), generator=generator).to(dtype)
    masks = torch.randint(0, 3, (count, 16, 20), generator=generator)
    agree = torch.rand(masks.shape, generator=generator) < torch.arange(count)[:, None, None] / count
    masks = torch.where(agree, Brightness().predictions(images), masks)
    masks[:, :2] = 255
    masks[-1] = 255
    return TensorDataset(images, masks)


def run(tmp_path, loaders, module=None, logger=False, devices=1, **kwargs):
    strategy = {} if devices == 1 else {"strategy": "ddp_fork"}
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, logger=logger, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[SegmentedImages(**kwargs)], **strategy,
    )  # fmt: skip
    trainer.test(module or Brightness(), loaders, verbose=False)
    return tmp_path / "runs/version_0"


@pytest.fixture
def drawn(monkeypatch):
    """What the callback draws, one list of images per picture; the pictures are empty."""
    pictures = []

    def spy(images, class_names):
        pictures.append((images, class_names))
        return Figure(figsize=(1, 1))

    monkeypatch.setattr(f"{NAME}.draw_segmented_images", spy)
    return pictures


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_writes_pictures_and_prints_their_paths(dtype, tmp_path, capsys):
    folder = run(tmp_path, DataLoader(data(dtype=dtype), batch_size=5), num_images=2)
    printed = capsys.readouterr().out
    for name in ("segmented_images.png", "segmented_images_worst.png"):
        assert imread(folder / name).shape[0] > 300
        assert str(folder / name) in printed


@pytest.mark.parametrize("choice", ["worst", "best"])
def test_the_shown_images_have_the_extreme_mious(choice, tmp_path, drawn):
    run(tmp_path, DataLoader(data(), batch_size=5), num_images=4, choices=[choice])
    images, masks = data().tensors
    truths, predictions = masks[:-1, 2:].flatten(1).numpy(), Brightness().predictions(images)[:, 2:].flatten(1).numpy()
    mious = [jaccard_score(truth, predictions[i], average="macro") for i, truth in enumerate(truths)]
    order = np.argsort(mious)[:4] if choice == "worst" else np.argsort(mious)[::-1][:4]
    ((shown, names),) = drawn
    assert names == Brightness.class_names
    assert [image.name for image in shown] == [f"image {index}" for index in order]
    for image, index in zip(shown, order, strict=True):
        np.testing.assert_array_equal(image.truth, np.where(masks[index] == 255, -1, masks[index]))
        np.testing.assert_allclose(image.image, images[index].permute(1, 2, 0) / 255, atol=1e-6)


@pytest.mark.parametrize("ignore_index", [1, None])
def test_the_module_says_which_label_is_ignored(ignore_index, tmp_path, drawn):
    module = Brightness()
    module.ignore_index = ignore_index
    images, masks = data(2).tensors
    masks = masks.clamp(max=2)
    run(tmp_path, DataLoader(TensorDataset(images, masks)), module, num_images=1, choices=["best"])
    (((image,), _),) = drawn
    index = int(image.name.removeprefix("image "))
    np.testing.assert_array_equal(image.truth, np.where(masks[index] == ignore_index, -1, masks[index]))


def names_drawn(drawn):
    return [[image.name for image in images] for images, _ in drawn]


def test_random_images_depend_on_the_seed_alone(tmp_path, drawn):
    for number, (seed, batch_size) in enumerate([(0, 5), (0, 3), (1, 5)]):
        loader = DataLoader(data(40), batch_size=batch_size)
        run(tmp_path / str(number), loader, choices=["random"], seed=seed)
    first, same, other = names_drawn(drawn)
    assert first == same != other
    assert len(set(first)) == 6


def test_processes_show_what_one_shows(tmp_path):
    """The pictures of two processes, which draw in a process of their own, have the same pixels."""
    loader = DataLoader(data(13), batch_size=2)
    one, two = (run(tmp_path / str(n), loader, devices=n, num_images=3) for n in (1, 2))
    for name in ("segmented_images.png", "segmented_images_worst.png"):
        np.testing.assert_array_equal(imread(one / name), imread(two / name))


def test_pictures_are_sent_to_loggers(tmp_path):
    class TakesImages(CSVLogger):
        images: ClassVar = {}

        def log_image(self, key, images, step=None):
            self.images[key] = images

    loggers = [TakesImages(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    run(tmp_path, DataLoader(data(), batch_size=5), logger=loggers, num_images=2)
    assert set(TakesImages.images) == {"segmented_images", "segmented_images_worst"}
    events = EventAccumulator(loggers[1].log_dir).Reload()
    assert set(events.Tags()["images"]) == {"segmented_images", "segmented_images_worst"}


def test_each_dataloader_has_its_pictures(tmp_path, drawn):
    folder = run(
        tmp_path, {name: DataLoader(data(), batch_size=4) for name in ("day", "night")}, choices=["random", "best"]
    )
    assert {path.name for path in folder.iterdir()} == {
        f"segmented_images{choice}_{name}.png" for choice in ("", "_best") for name in ("day", "night")
    }
    assert len(drawn) == 4


def test_without_a_valid_pixel_nothing_is_drawn(tmp_path):
    images, masks = data().tensors
    folder = run(tmp_path, DataLoader(TensorDataset(images, torch.full_like(masks, 255)), batch_size=4))
    assert not list(folder.glob("*.png"))


class Silent(Brightness):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return None


class Small(Brightness):
    def predictions(self, images):
        return super().predictions(images)[:, ::2, ::2]


@pytest.mark.parametrize(("module", "found"), [(Silent, "a NoneType"), (Small, r"a tensor \(4, 8, 10\)")])
def test_other_predictions_are_an_error(module, found, tmp_path):
    message = rf"needs a test_step that returns .*\(4, 16, 20\).* that of {module.__name__} returned {found}\."
    with pytest.raises(ValueError, match=message):
        run(tmp_path, DataLoader(data(), batch_size=4), module())


def test_batches_of_labels_are_an_error(tmp_path):
    labels = TensorDataset(data().tensors[0], torch.zeros(12))
    with pytest.raises(ValueError, match=r"masks \(B, H, W\), .* got \(4, 3, 16, 20\) and \(4,\)"):
        run(tmp_path, DataLoader(labels, batch_size=4))


@pytest.mark.parametrize(
    "arguments", [{"num_images": 0}, {"choices": ["hardest"]}, {"choices": "best"}, {"choices": []}]
)
def test_wrong_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be at least 1|some of random, worst and best"):
        SegmentedImages(**arguments)
