import numpy as np
import pytest
from segmentation_data import draw_rand_cityscapes, draw_synthia_sequence, random_mask, save_png16

from lightning_recall.segmentation.data import SegmentationTransforms
from lightning_recall.segmentation.datamodules import (
    CamVidDataModule,
    RandCityscapesDataModule,
    SynthiaSequencesDataModule,
)

WHOLE = SegmentationTransforms()


def frames(data):
    return {data.image_path(index)[-10:-4] for index in range(len(data))}


def test_frames_are_split_by_time_for_all_cameras(tmp_path):
    draw_synthia_sequence(tmp_path, frames=10)
    draw_synthia_sequence(tmp_path, frames=20, name="SYNTHIA-SEQS-05-FALL", cameras=("Omni_F",))
    data = SynthiaSequencesDataModule(str(tmp_path), transforms=WHOLE)
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [28, 4, 8]
    one = SynthiaSequencesDataModule(str(tmp_path / "SYNTHIA-SEQS-05-SUMMER"), transforms=WHOLE)
    one.setup()
    assert frames(one.train_data) == {f"{index:06d}" for index in range(7)}
    assert frames(one.val_data) == {"000007"}
    assert frames(one.test_data) == {"000008", "000009"}
    assert [len(part) for part in (one.train_data, one.val_data, one.test_data)] == [14, 2, 4]
    chosen = SynthiaSequencesDataModule(
        str(tmp_path), ("SYNTHIA-SEQS-05-SUMMER",), ("Stereo_Left",), ("Omni_B",), transforms=WHOLE
    )
    chosen.setup()
    assert len(chosen.train_data) == 7
    assert all("/Stereo_Left/Omni_B/" in chosen.train_data.image_path(index) for index in range(7))


def test_ids_of_sequences(tmp_path):
    draw_synthia_sequence(tmp_path)
    ids = random_mask(np.random.default_rng(3), np.arange(16))
    path = tmp_path / "SYNTHIA-SEQS-05-SUMMER/GT/LABELS/Stereo_Left/Omni_B/000007.png"
    save_png16(np.stack([ids, ids * 300, ids * 0], 2).astype(np.uint16), path)
    data = SynthiaSequencesDataModule(str(tmp_path), transforms=WHOLE)
    data.setup()
    expected = np.select([(ids == 0) | (ids == 13) | (ids == 14), ids == 15], [255, 12], ids - 1)
    assert np.array_equal(data.val_data[0][1], expected)
    assert data.class_names[9] == "pedestrian"
    assert data.class_names[12] == "traffic light"
    assert data.num_classes == len(data.colors) == 13
    colors = dict(zip(data.class_names, data.colors.tolist(), strict=True))
    camvid = dict(zip(CamVidDataModule.class_names, CamVidDataModule.colors.tolist(), strict=True))
    shared = {"sky", "building", "road", "pole", "fence", "car"}  # the data set took over CamVid's colours
    assert {name: colors[name] for name in shared} == {name: camvid[name] for name in shared}
    assert (colors["lane marking"], colors["traffic light"]) == ([0, 175, 0], [0, 128, 128])


def test_rand_cityscapes(tmp_path):
    """The ids by name are those of the data set's description."""
    described = ["void", "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car", "traffic sign"]
    described += ["person", "bicycle", "motorcycle", "parking", "road work", "traffic light", "terrain", "rider"]
    described += ["truck", "bus", "train", "wall", "lane marking"]
    draw_rand_cityscapes(tmp_path, count=20)
    data = RandCityscapesDataModule(str(tmp_path), transforms=WHOLE)
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [17, 1, 2]
    assert not frames(data.train_data) & (frames(data.val_data) | frames(data.test_data))
    assert data.num_classes == 16
    ids = random_mask(np.random.default_rng(3), np.arange(23))
    save_png16(np.stack([ids, ids, ids], 2).astype(np.uint16), data.test_data.mask_path(0))
    index_of = {name: index for index, name in enumerate(data.class_names)}
    expected = [[index_of.get(described[value], 255) for value in row] for row in ids]
    assert data.test_data[0][1].tolist() == expected
    assert "lane marking" not in index_of
    assert data.colors[index_of["sky"]].tolist() == [70, 130, 180]


def test_images_are_resized_by_default(tmp_path):
    data = RandCityscapesDataModule(str(draw_rand_cityscapes(tmp_path)), batch_size=2)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, masks = next(iter(loader))
        assert images.shape[2:] == masks.shape[1:] == (384, 768)


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"none does not exist.*synthia-dataset.net"):
        SynthiaSequencesDataModule(str(tmp_path / "none")).setup()
    with pytest.raises(ValueError, match="holds no sequence, a folder with RGB and GT"):
        SynthiaSequencesDataModule(str(tmp_path)).setup()
    draw_synthia_sequence(tmp_path, cameras=("Omni_F",))
    with pytest.raises(ValueError, match=r"holds no RGB/\*/Omni_L/\*.png"):
        SynthiaSequencesDataModule(str(tmp_path), cameras=("Omni_F", "Omni_L")).setup()
    (tmp_path / "SYNTHIA-SEQS-05-SUMMER/GT/LABELS/Stereo_Left/Omni_F/000003.png").unlink()
    with pytest.raises(ValueError, match=r"training: cannot read the mask .*000003.png"):
        SynthiaSequencesDataModule(str(tmp_path)).setup()
    with pytest.raises(ValueError, match=r"RGB does not exist.*RAND-CITYSCAPES"):
        RandCityscapesDataModule(str(tmp_path)).setup()
    for name in ("RGB", "GT/LABELS"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no \*.png"):
        RandCityscapesDataModule(str(tmp_path)).setup()
