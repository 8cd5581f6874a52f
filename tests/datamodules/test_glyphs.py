from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_recall import RecallAtK
from lightning_recall.datamodules import GlyphsDataModule, glyphs


@pytest.fixture(scope="module")
def datamodule(all_glyphs):
    datamodule = GlyphsDataModule(root=str(all_glyphs), batch_size=32)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def test_counts(datamodule):
    splits = datamodule.train_data, datamodule.val_data, datamodule.test_data
    classes = [set(data.labels.tolist()) for data in splits]
    assert sum(len(data) for data in splits) == 27_656
    assert [len(c) for c in classes] == [924, 103, 1028]
    assert not classes[0] & classes[1] | classes[0] & classes[2] | classes[1] & classes[2]
    assert all(np.unique(data.labels, return_counts=True)[1].min() >= 12 for data in splits)


def test_copies_are_of_one_character_and_counted_on_request(all_glyphs):
    data = GlyphsDataModule(root=str(all_glyphs), val_classes=0, check_duplicates=True)
    with pytest.warns(UserWarning, match="exact copy") as warned:
        data.setup("fit")
    splits = data.train_data.images.numpy(), data.test_data.images.numpy()
    counts = [np.array(list(Counter(image.tobytes() for image in images).values())) for images in splits]
    copies = [f"{each[each > 1].sum():,} of {each.sum():,}" for each in counts]
    assert [str(warning.message).partition(" images")[0] for warning in warned] == [
        f"training: {copies[0]}",
        f"test: {copies[1]}",
    ]
    assert all("that has the same label" in str(warning.message) for warning in warned)


def test_raw_pixels_have_a_recall_at_1_of_58_percent(datamodule):
    metric = RecallAtK(1)
    metric.update(datamodule.test_data.images.flatten(1).float(), torch.from_numpy(datamodule.test_data.labels))
    assert metric.compute() == pytest.approx(0.584, abs=0.001)


def test_images_are_not_blank_and_belong_to_their_labels(datamodule):
    data = datamodule.train_data
    assert data.images.shape[1:] == (1, 32, 32)
    assert data.images.dtype == torch.uint8
    assert data.images.flatten(1).any(1).all()  # none blank
    index = int(np.flatnonzero(data.labels == data.labels[0])[0])
    assert int(data[index][1]) == data.labels[0]


def test_no_two_characters_look_alike_in_a_typeface(datamodule):
    font = glyphs.ImageFont.truetype(
        str(glyphs.Path(glyphs.matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), glyphs.FONT_SIZE
    )
    assert np.array_equal(glyphs.draw("A", font), glyphs.draw("\N{GREEK CAPITAL LETTER ALPHA}", font))
    codes = {code for data in (datamodule.train_data, datamodule.test_data) for code in data.labels.tolist()}
    assert ord("A") in codes | set(datamodule.val_data.labels.tolist())
    assert ord("\N{GREEK CAPITAL LETTER ALPHA}") not in codes | set(datamodule.val_data.labels.tolist())


def test_the_cache_is_used_and_never_partially_written(all_glyphs, tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "draw_glyphs", lambda: pytest.fail("rendered again"))
    GlyphsDataModule(root=str(all_glyphs)).prepare_data()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(glyphs, "draw_glyphs", lambda: (np.zeros((1, 32, 32), np.uint8), np.zeros(1, np.int64)))
    monkeypatch.setattr(np, "savez_compressed", interrupted)
    datamodule = GlyphsDataModule(root=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        datamodule.prepare_data()
    assert not datamodule.file.exists()


def test_a_cache_that_cannot_be_written_is_an_error_before_rendering(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "draw_glyphs", lambda: pytest.fail("rendered"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another root"):
        GlyphsDataModule(root=str(tmp_path / "file" / "folder")).prepare_data()


def test_overfitting_repeats_one_batch(datamodule):
    def first_labels(module):
        return [next(iter(loader))[0][1].tolist() for loader in [module.train_dataloader()] for _ in range(2)]

    datamodule.trainer = SimpleNamespace(overfit_batches=1, global_rank=0, world_size=1)
    try:
        first, second = first_labels(datamodule)
    finally:
        datamodule.trainer = None
    assert first == second
    first, second = first_labels(datamodule)
    assert first != second


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert GlyphsDataModule().file.parent == tmp_path / "lightning_recall"


def test_the_loaders_work_without_a_trainer(datamodule):
    chunks = next(iter(datamodule.train_dataloader()))
    images, labels = chunks[0]
    assert images.shape == (32, 1, 32, 32)
    assert labels.bincount().max() == 4
    images, labels = next(iter(datamodule.test_dataloader()))
    assert images.shape == (256, 1, 32, 32)
    assert datamodule.on_after_batch_transfer((images, labels), 0) == (images, labels)
