from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_recall.callbacks.class_colors import class_colors
from lightning_recall.segmentation.callbacks import MaskWriter
from lightning_recall.segmentation.data import MaskFormat, SegmentationFiles, SegmentationTransforms
from lightning_recall.segmentation.data.batches import collate


class Brightness(pl.LightningModule):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return (batch[0].float().mean(1) / 86).long()


class Files(TensorDataset):
    class_names = ("dark", "grey", "bright")

    def image_path(self, index):
        return f"/data/{'ab'[index % 2]}/{index // 2}.jpg"


IMAGES = torch.randint(0, 256, (7, 3, 6, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
MASKS = (IMAGES.float().mean(1) / 86).to(torch.uint8).numpy()


def run(tmp_path, loaders=None, module=None, datamodule=None, devices=1):
    strategy = {} if devices == 1 else {"strategy": "ddp_fork"}
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[MaskWriter()], **strategy,
    )  # fmt: skip
    module = module or Brightness()
    for _ in range(1 if devices > 1 else 2):
        trainer.predict(module, loaders, datamodule, return_predictions=False)
    return tmp_path / "runs/version_0"


def read(folder):
    return {str(path.relative_to(folder)): np.array(Image.open(path)) for path in folder.rglob("*.png")}


@pytest.mark.parametrize("devices", [1, 2])
def test_masks_are_named_after_their_images_and_hold_classes(devices, tmp_path, capsys):
    folder = run(tmp_path, DataLoader(Files(IMAGES), batch_size=2), devices=devices)
    written = read(folder / "masks")
    assert set(written) == {f"{'ab'[index % 2]}/{index // 2}.png" for index in range(7)}
    for index, mask in enumerate(MASKS):
        np.testing.assert_array_equal(written[f"{'ab'[index % 2]}/{index // 2}.png"], mask)
    if devices == 1:  # the second prediction keeps the first
        assert read(folder / "masks-1").keys() == written.keys()
        assert f"class): {folder / 'masks'}\n" in capsys.readouterr().out


def palette(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.reshape(image.getpalette(), (-1, 3))[:3].tolist()


def test_masks_have_a_palette(tmp_path):
    folder = run(tmp_path / "own", DataLoader(Files(IMAGES), batch_size=2))
    assert palette(folder / "masks/a/0.png") == class_colors(3).tolist()


class Data(pl.LightningDataModule):
    colors = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint8)

    def predict_dataloader(self):
        return {"day": DataLoader(TensorDataset(IMAGES), batch_size=3), "night": DataLoader(Files(IMAGES[:3]))}


def test_colours_of_the_data_module_and_one_folder_per_dataloader(tmp_path):
    folder = run(tmp_path, datamodule=Data())
    night = {"night/a/0.png", "night/b/0.png", "night/a/1.png"}
    assert set(read(folder / "masks")) == {f"day/{index}.png" for index in range(7)} | night
    assert palette(folder / "masks/night/b/0.png") == Data.colors.tolist()


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer = pl.Trainer(fast_dev_run=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=[MaskWriter()])
    trainer.predict(Brightness(), DataLoader(Files(IMAGES), batch_size=2))
    assert not list(tmp_path.iterdir())


class Stream(IterableDataset):
    def __iter__(self):
        yield from [(image,) for image in IMAGES]


def test_unknown_indices_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"MaskWriter names each mask after its image, but the indices.* map-style"):
        run(tmp_path, DataLoader(Stream(), batch_size=2))


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (None, "a NoneType"),
        (torch.zeros(2, 6, 8), r"a tensor \(2, 6, 8\)"),
        (torch.full((2, 6, 8), 256), r"a tensor \(2, 6, 8\)"),
        (torch.zeros(2, 3, 6, 8, dtype=torch.long), r"a tensor \(2, 3, 6, 8\)"),
    ],
)
def test_predictions_that_are_no_masks_are_an_error(outputs, found):
    with pytest.raises(ValueError, match=rf"integers from 0 to 255; that of SimpleNamespace returned {found}\."):
        MaskWriter().on_predict_batch_end(None, SimpleNamespace(), outputs, None, 0)


@pytest.mark.parametrize("resize", [None, (6, 8)])
def test_masks_of_resized_images_have_the_size_of_the_files(tmp_path, resize):
    for number, size in enumerate([(12, 16), (10, 9)]):
        Image.fromarray(np.full((*size, 3), 100 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    data = SegmentationFiles(files, None, MaskFormat({}), ("a", "b"), SegmentationTransforms(resize=resize))
    written = read(run(tmp_path, DataLoader(data, batch_size=1, collate_fn=collate)) / "masks")
    assert {name: mask.shape for name, mask in written.items()} == {"0.png": (12, 16), "1.png": (10, 9)}
    assert [np.unique(mask).tolist() for mask in written.values()] == [[0], [1]]
