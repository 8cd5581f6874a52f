import logging

import numpy as np
import pytest
import torch
from segmentation_data import draw_camvid, random_mask, save

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.segmentation.data import SegmentationArrays, SegmentationTransforms
from lightning_recall.segmentation.datamodules import CamVidDataModule, ScenesDataModule, SegmentationDataModule

TWO_CLASSES = ("grass", "cow")


class Drawn(SegmentationDataModule):
    """Random images of one size; `masks` gives the masks of a split."""

    class_names = TWO_CLASSES

    def __init__(self, masks, **kwargs):
        super().__init__(**kwargs)
        self.masks = masks

    def read(self):
        rng = np.random.default_rng(0)
        return {
            split: SegmentationArrays(
                rng.integers(0, 256, (len(masks), 3, *masks.shape[1:]), np.uint8), masks, TWO_CLASSES, self.transforms
            )
            for split, masks in self.masks.items()
        }


def masks(count, value=None):
    drawn = np.random.default_rng(0).integers(0, 2, (count, 8, 8), np.uint8)
    return drawn if value is None else np.full_like(drawn, value)


class Counting(LightningModule):
    """Records the images of each step; its loss has a gradient."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        images, masks = batch
        self.seen.append((images.sum().item(), masks.sum().item()))
        return self.weight * 1.0

    def validation_step(self, batch, _):
        assert batch[0].dtype == torch.uint8
        assert batch[1].dtype == torch.int64

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, devices=1, **quiet, **settings)


def test_sizes_and_class_frequencies_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = CamVidDataModule(str(draw_camvid(tmp_path)))
        data.setup()
    assert "images: training 6, validation 3, test 3" in caplog.text
    assert "class frequencies: " in caplog.text
    assert "ignored pixels: " in caplog.text
    pixels = np.concatenate([data.train_data.read_mask(index).ravel() for index in range(6)])
    expected = [(pixels == label).sum() / (pixels != 255).sum() for label in range(11)]
    assert data.class_frequencies == pytest.approx(expected)
    order = np.argsort(expected)[::-1]
    logged = caplog.text.split("class frequencies: ")[1]
    assert logged.startswith(data.class_names[order[0]])


def test_frequencies_without_the_check():
    data = Drawn({"train": masks(4)}, check_masks=False)
    data.setup()
    assert data.class_frequencies.sum() == pytest.approx(1)
    assert data.class_frequencies[1] == pytest.approx(masks(4).mean())
    only_test = Drawn({"test": masks(4)})
    only_test.setup("test")
    with pytest.raises(ValueError, match="has no training images, so it has no class frequencies"):
        _ = only_test.class_frequencies


def test_stages_check_what_they_use(tmp_path):
    draw_camvid(tmp_path)
    save(np.full((36, 48), 77, dtype=np.uint8), tmp_path / "testannot" / "0001TP_000001.png")
    data = CamVidDataModule(str(tmp_path))
    for stage in ("fit", "validate", "predict"):
        data.setup(stage)
    with pytest.raises(ValueError, match=r"test: the mask .*testannot/0001TP_000001.png has the id 77 in 1,728 pixels"):
        data.setup("test")
    CamVidDataModule(str(tmp_path), check_masks=False).setup("test")


def test_training_masks_are_checked_before_the_first_step(tmp_path):
    draw_camvid(tmp_path)
    (tmp_path / "trainannot" / "0001TP_000002.png").write_bytes(b"no image")
    module = Counting()
    with pytest.raises(ValueError, match=r"training: cannot read the mask .*0001TP_000002.png"):
        trainer(tmp_path, max_epochs=1).fit(module, CamVidDataModule(str(tmp_path)))
    assert not module.seen


def test_images_of_different_sizes_are_found_before_training(tmp_path):
    draw_camvid(tmp_path)
    for split in ("train", "val"):
        save(np.zeros((24, 48, 3), dtype=np.uint8), tmp_path / split / "0001TP_000001.png")
        save(
            np.uint8(random_mask(np.random.default_rng(0), [0, 1], (24, 48))),
            tmp_path / f"{split}annot/0001TP_000001.png",
        )
    with pytest.raises(
        ValueError, match=r"training: Images of different sizes, such as 48 x 24 and 48 x 36 .*crop_size"
    ):
        CamVidDataModule(str(tmp_path)).setup()
    crops = SegmentationTransforms(crop_size=24)
    with pytest.raises(
        ValueError, match=r"validation: Images of different sizes.* set eval_batch_size to 1, or transf"
    ):
        CamVidDataModule(str(tmp_path), transforms=crops).setup()
    for settings in (
        {"transforms": crops, "eval_batch_size": 1},
        {"batch_size": 1},
        {"transforms": SegmentationTransforms(resize=(24, 32))},
    ):
        data = CamVidDataModule(str(tmp_path), **settings)
        data.setup()
        assert len(list(data.train_dataloader())) == 6 // min(6, data.batch_size)
        assert list(data.val_dataloader())


def test_warnings_about_masks():
    with pytest.warns(UserWarning, match="1 of 3 mask has only ignored pixels"):
        Drawn({"train": np.concatenate([masks(2), masks(1, 255)])}).setup()
    with pytest.warns(UserWarning, match="all pixels are of one class, 'grass': there is nothing to learn"):
        Drawn({"train": masks(2, 0)}).setup()
    three = Drawn({"train": masks(2)})
    three.class_names = ("grass", "cow", "sheep")
    three.read = lambda: {"train": SegmentationArrays(np.zeros((2, 3, 8, 8), np.uint8), masks(2), three.class_names)}
    with pytest.warns(UserWarning, match="training: 'sheep' never occurs, so the network cannot learn it"):
        three.setup()
    with pytest.raises(ValueError, match="training: all pixels of 2 masks are ignored: check the ignored ids"):
        Drawn({"train": masks(2, 255)}).setup()


def test_missing_parts():
    data = Drawn({"train": masks(4)})
    data.setup()
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="Drawn has no test images"):
        data.test_dataloader()
    with pytest.raises(ValueError, match="Drawn has no images for validation"):
        Drawn({"train": masks(4), "val": masks(0)}).setup()
    data = Drawn({"test": masks(4)})
    data.setup("test")
    with pytest.raises(ValueError, match="Drawn has no training images"):
        data.train_dataloader()
    assert len(data.predict_dataloader()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"seed": 1.5}, "seed must be an integer"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ScenesDataModule(**settings)


def test_each_epoch_has_other_crops_and_a_resumed_run_has_the_same(tmp_path):
    def run(max_epochs, ckpt_path=None):
        module, whole = Counting(), trainer(tmp_path, max_epochs=max_epochs, enable_checkpointing=False)
        data = ScenesDataModule(num_images=10, batch_size=4, transforms=SegmentationTransforms(crop_size=32))
        whole.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
        whole.save_checkpoint(tmp_path / f"{max_epochs}.ckpt")
        return module.seen

    three = run(3)
    assert len(set(three)) == 6
    assert run(1) == three[:2]
    assert run(3, tmp_path / "1.ckpt") == three[2:]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_repeats_the_same_images(tmp_path):
    module = Counting()
    data = ScenesDataModule(num_images=10, batch_size=4, transforms=SegmentationTransforms(scale=(1, 1), flip=False))
    trainer(tmp_path, max_epochs=3, overfit_batches=1, enable_checkpointing=False).fit(module, data)
    assert len(module.seen) == 3
    assert len(set(module.seen)) == 1


class PixelCounts(Counting):
    """Counts steps and images, and the pixels of each class over all processes."""

    def training_step(self, batch, batch_idx):
        self.log_dict({"steps": batch_idx + 1.0, "images": float(len(batch[0]))}, batch_size=1)
        return super().training_step(batch, batch_idx)

    def on_test_start(self):
        self.counts = torch.zeros(256, dtype=torch.int64)

    def test_step(self, batch):
        self.counts += torch.bincount(batch[1].flatten(), minlength=256)

    def on_test_epoch_end(self):
        counts = self.all_gather(self.counts).sum(0)
        for label in range(9):
            self.log(f"{label}", counts[label].double(), sync_dist=True)


def test_two_processes_evaluate_each_image_once_and_share_a_batch(tmp_path):
    data = ScenesDataModule(num_images=15, batch_size=4, eval_batch_size=2)
    processes = Trainer(
        default_root_dir=tmp_path, devices=2, strategy="ddp_fork", accelerator="cpu", max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    processes.fit(PixelCounts(), data)
    assert processes.callback_metrics["steps"] == 3  # batches of 4 images
    assert processes.callback_metrics["images"] == 2  # of them on each process
    (scores,) = processes.test(PixelCounts(), data, verbose=False)
    masks = ScenesDataModule(num_images=15).read()["test"].masks
    assert len(masks) == 5  # odd: one process gets an image twice
    expected = np.bincount(masks.numpy().ravel(), minlength=9)
    assert [scores[f"{label}"] for label in range(9)] == expected.tolist()
