from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segmentation_data import draw_camvid

from lightning_recall.segmentation.datamodules import CamVidDataModule

REAL = Path(__file__).parents[4] / "shared" / "data" / "camvid"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_ids_are_classes_and_11_is_ignored(tmp_path, suffix):
    data = CamVidDataModule(str(draw_camvid(tmp_path, suffix=suffix)))
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [6, 3, 3]
    for part, folder in ((data.val_data, "valannot"), (data.test_data, "testannot")):
        ids = np.asarray(Image.open(tmp_path / folder / "0001TP_000001.png"))
        assert np.array_equal(part[1][1].numpy(), np.where(ids == 11, 255, ids))
    assert data.class_names[8:] == ("car", "pedestrian", "bicyclist")
    assert data.num_classes == len(data.colors) == 11


def test_colours_are_those_of_the_tutorial():
    """Written down from its script that shows predictions."""
    colors = dict(zip(CamVidDataModule.class_names, CamVidDataModule.colors.tolist(), strict=True))
    assert (colors["sky"], colors["pole"], colors["road"]) == ([128, 128, 128], [192, 192, 128], [128, 64, 128])
    assert (colors["pavement"], colors["car"], colors["bicyclist"]) == ([60, 40, 222], [64, 0, 128], [0, 128, 192])
    assert len(set(map(tuple, colors.values()))) == 11


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"train does not exist, .* SegNet tutorial"):
        CamVidDataModule(str(tmp_path)).setup()
    draw_camvid(tmp_path)
    for file in (tmp_path / "valannot").iterdir():
        file.unlink()
    (tmp_path / "valannot").rmdir()
    with pytest.raises(ValueError, match="valannot does not exist"):
        CamVidDataModule(str(tmp_path)).check_data()


def test_an_id_above_11_is_an_error(tmp_path):
    draw_camvid(tmp_path)
    Image.fromarray(np.full((36, 48), 12, dtype=np.uint8)).save(tmp_path / "trainannot" / "0001TP_000000.png")
    with pytest.raises(ValueError, match=r"has the id 12 in 1,728 pixels. Known are 0 'sky', .*11 'ignored'"):
        CamVidDataModule(str(tmp_path)).setup()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CamVid")
def test_real_scenes():
    data = CamVidDataModule(str(REAL))
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [367, 101, 233]
    frequencies = dict(zip(data.class_names, data.class_frequencies, strict=True))
    assert frequencies["road"] == pytest.approx(0.33, abs=0.01)
    assert frequencies["bicyclist"] == pytest.approx(0.003, abs=0.001)
    for split in ("validate", "test"):
        data.setup(split)
    _, mask = data.val_data[0]
    assert (mask[:10] == 0).float().mean() > 0.3  # sky above
    assert (mask[-10:] == 3).float().mean() > 0.5  # road below
