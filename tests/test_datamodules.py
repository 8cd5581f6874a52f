"""Every data module on a small data set in the original format: splits, counts, protocols, and a run."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning import Trainer, seed_everything

from lightning_recall import (
    ClassBalancedBatchSampler,
    ImageEmbedder,
    RecallAtKLoss,
    RetrievalEvaluation,
    RetrievalModule,
    datamodules,
)
from lightning_recall.data import ImageTransforms
from lightning_recall.models import SmallConvNet

SMALL = pytest.mark.filterwarnings("ignore:.* lists .* images of .* classes, but the published split")
TRANSFORMS = ImageTransforms(size=32, resize=36)
MODULES = {
    "sop": datamodules.SOPDataModule,
    "cub": datamodules.CUB200DataModule,
    "cars196": datamodules.Cars196DataModule,
    "inaturalist": datamodules.INaturalist2018DataModule,
    "vehicle_id": datamodules.VehicleIDDataModule,
    "in_shop": datamodules.InShopDataModule,
    "landmarks": datamodules.LandmarksDataModule,
    "omniglot": datamodules.OmniglotDataModule,
    "image_folder": datamodules.ImageFolderDataModule,
}


def set_up(name, root, **kwargs):
    transforms = None if name == "omniglot" else TRANSFORMS  # Omniglot's default is small and grey
    data = MODULES[name](str(root), transforms=transforms, batch_size=8, chunk_size=3, **{"val_classes": 1, **kwargs})
    data.prepare_data()
    data.setup("fit")
    return data


def classes(data):
    return set(data.labels.tolist())


@SMALL
@pytest.mark.parametrize("name", MODULES)
def test_classes_are_disjoint_and_files_exist(name, small_data):
    data = set_up(name, small_data(name), **({"test_classes": 4} if name == "image_folder" else {}))
    parts = [data.train_data, data.val_data]
    if data.test_data is not None:
        parts += list(data.test_data.values()) if name == "vehicle_id" else [data.test_data]
    assert [len(classes(part)) for part in parts[:2]] == [3, 1]
    assert not classes(parts[0]) & classes(parts[1])
    assert all(not classes(part) & (classes(parts[0]) | classes(parts[1])) for part in parts[2:])
    paths = [set(map(part.path, range(len(part)))) for part in parts]
    assert not paths[0] & paths[1]
    assert all(not (p & (paths[0] | paths[1])) for p in paths[2:])
    for part in parts:
        counts = np.unique(part.labels, return_counts=True)[1]
        assert (counts == 4).all()
        for index in range(len(part)):
            image, label = part[index]
            assert image.shape[1:] == (32, 32)
            assert int(label) == part.labels[index]
    assert parts[0].training
    assert not any(part.training for part in parts[1:])


LABEL_OF = {  # label in a path of the small data, for data sets whose files contain numbers as labels
    "sop": lambda path: int(path.stem.split("_")[0]),
    "cub": lambda path: int(path.parent.name[:3]),
    "cars196": lambda path: (1, 2, 3, 98, 99, 100, 101, 196)[(int(path.stem) - 1) // 4],
    "vehicle_id": lambda path: int(path.stem) // 10,
    "landmarks": lambda path: int(path.stem[::-1], 16) // 77,
}


@SMALL
@pytest.mark.parametrize("name", MODULES)
def test_labels_equal_those_of_the_files(name, small_data):
    data = set_up(name, small_data(name))
    tests = list(data.test_data.values()) if name == "vehicle_id" else [data.test_data] * (data.test_data is not None)
    label_of = {}
    for part in (data.train_data, data.val_data, *tests):
        for index, label in enumerate(part.labels.tolist()):
            path = Path(part.path(index))
            expected = LABEL_OF[name](path) if name in LABEL_OF else path.parent
            assert label_of.setdefault(expected, label) == label
    assert len(set(label_of.values())) == len(label_of) == (4 if name == "landmarks" else 8)
    if name in LABEL_OF:
        assert all(expected == label for expected, label in label_of.items())


@SMALL
@pytest.mark.parametrize(
    ("name", "super_class"),
    [
        ("sop", lambda path: int(path.stem.split("_")[0]) % 2),
        ("inaturalist", lambda path: path.parent.parent.name),
        ("omniglot", lambda path: path.parent.parent),
    ],
)
def test_the_sampler_receives_super_classes(name, super_class, small_data):
    seen = []

    def sampler(labels, *sizes):
        seen.append(labels)
        return ClassBalancedBatchSampler(labels, *sizes)

    data = set_up(name, small_data(name), sampler=sampler, samples_per_class=4)
    data.train_dataloader()
    assert np.array_equal(seen[0][:, 0], data.train_data.labels)
    assert np.array_equal(seen[0][:, 1], data.train_data.super_labels)
    parts = data.train_data, data.val_data, data.test_data
    pairs = {(super_class(Path(p.path(i))), int(p.super_labels[i])) for p in parts for i in range(len(p))}
    count = 4 if name == "omniglot" else 2  # whose splits have different alphabets
    assert len(pairs) == len({expected for expected, _ in pairs}) == len({label for _, label in pairs}) == count


@SMALL
@pytest.mark.parametrize("name", [name for name in MODULES if name != "landmarks"])
def test_fit_and_test_run(name, small_data, tmp_path):
    seed_everything(0, verbose=False)
    data = set_up(name, small_data(name), num_workers=2 if name == "sop" else 0)
    channels = {"in_channels": 1} if name == "omniglot" else {"in_channels": 3}
    embedder = ImageEmbedder(SmallConvNet(**channels), embedding_dim=8, norm="batch")
    module = RetrievalModule(embedder, RecallAtKLoss((1, 2)), chunk_size=4)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        enable_model_summary=False,
        callbacks=[RetrievalEvaluation((1, 2))],
        **settings,
    )
    trainer.fit(module, datamodule=data)
    assert "val/recall@1" in trainer.callback_metrics
    (scores,) = trainer.test(module, datamodule=data, verbose=False)[:1]
    expected = {"vehicle_id": "test/small/recall@1"}.get(name, "test/recall@1")
    assert 0 <= scores[expected] <= 1


@SMALL
@pytest.mark.parametrize("protocol", ["all", "reid"])
def test_vehicle_id_has_three_tests_and_two_protocols(small_data, protocol):
    data = set_up("vehicle_id", small_data("vehicle_id"), protocol=protocol)
    assert {name: len(classes(test)) for name, test in data.test_data.items()} == {"small": 2, "medium": 3, "large": 4}
    large = data.test_data["large"]
    if protocol == "all":
        assert large.is_gallery is None
        return
    assert np.unique(large.labels[large.is_gallery], return_counts=True)[1].tolist() == [1] * 4
    assert np.array_equal(large.is_query, ~large.is_gallery)
    other = set_up("vehicle_id", large.root and data.root, protocol="reid", seed=5).test_data["large"]
    assert not np.array_equal(other.is_gallery, large.is_gallery)


@SMALL
def test_in_shop_has_queries_and_gallery(small_data):
    root = small_data("in_shop")
    test = set_up("in_shop", root).test_data
    assert (test.is_query.sum(), test.is_gallery.sum(), len(test)) == (8, 8, 16)
    assert np.array_equal(test.is_query, ~test.is_gallery)
    assert all(test.path(index).split("/")[-1][:2] in ("00", "01") for index in np.flatnonzero(test.is_query))
    (root / "img").rename(root / "img_highres")
    assert "img_highres/WOMEN" in set_up("in_shop", root).test_data.path(0)
    file = root / "Eval" / "list_eval_partition.txt"
    file.write_text(file.read_text().replace("gallery", "galery"))
    with pytest.raises(ValueError, match="evaluation_status must be train, query or gallery, got 'galery'"):
        set_up("in_shop", root)


@SMALL
def test_cars_are_read_in_three_layouts(small_data, tmp_path):
    from scipy.io import loadmat, savemat

    root = small_data("cars196")
    rows = loadmat(root / "cars_annos.mat", squeeze_me=True)["annotations"]
    expected = set_up("cars196", root)

    devkit = tmp_path / "devkit_layout"
    (devkit / "devkit").mkdir(parents=True)
    kinds = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for part in (0, 1):
        chosen = rows[rows["test"].astype(int) == part]
        folder = ("cars_train", "cars_test")[part]
        table = np.zeros((1, len(chosen)), dtype=kinds)
        for n, row in enumerate(chosen):
            table[0, n] = (1, 1, 9, 9, row["class"], f"{n + 1:05}.jpg")
            (devkit / folder).mkdir(exist_ok=True)
            shutil.copy(root / str(row["relative_im_path"]), devkit / folder / f"{n + 1:05}.jpg")
        name = ("cars_train_annos.mat", "cars_test_annos_withlabels.mat")[part]
        savemat(devkit / "devkit" / name, {"annotations": table})

    kaggle = tmp_path / "kaggle_layout"
    kaggle.mkdir()
    (kaggle / "names.csv").write_text("".join(f"Ram C/V {c} 2012\n" for c in range(1, 197)))
    for part in (0, 1):
        name = ("train", "test")[part]
        lines = []
        for n, row in enumerate(rows[rows["test"].astype(int) == part]):
            to = kaggle / "car_data" / "car_data" / name / f"Ram C-V {row['class']} 2012" / f"{n + 1:05}.jpg"
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / str(row["relative_im_path"]), to)
            lines.append(f"{n + 1:05}.jpg,1,1,9,9,{row['class']}\n")
        (kaggle / f"anno_{name}.csv").write_text("".join(lines))

    for other in (devkit, kaggle):
        data = set_up("cars196", other)
        for part in ("train_data", "val_data", "test_data"):
            assert sorted(getattr(data, part).labels) == sorted(getattr(expected, part).labels)
            assert len(set(map(getattr(data, part).path, range(4)))) == 4
    (devkit / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(ValueError, match=r"cars_test_annos_withlabels.mat does not exist, .* root must contain one of"):
        set_up("cars196", devkit)
    savemat(devkit / "devkit" / "cars_test_annos_withlabels.mat", {"annotations": [{"fname": "1.jpg"}]})
    with pytest.raises(ValueError, match="has no field 'class' in its annotations"):
        set_up("cars196", devkit)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "omniglot"])
def test_the_error_for_a_missing_root_says_what_to_do(name, tmp_path):
    with pytest.raises(ValueError, match=r"does not exist, but its parent folder .* does\. .*root"):
        set_up(name, tmp_path / "nowhere")


@SMALL
@pytest.mark.parametrize(("name", "folder"), [("sop", "bicycle_final"), ("cub", "images"), ("landmarks", "train")])
def test_an_incomplete_archive_is_rejected(name, folder, small_data):
    root = small_data(name)
    files = sorted((root / folder).rglob("*.*"))
    for file in files[len(files) // 2 :]:
        if file.suffix.lower() == ".jpg":
            file.unlink()
    with pytest.raises(ValueError, match=r"checked files cannot be found, such as .*\. .*root"):
        set_up(name, root)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("sop", {"59,551 images of 11,318", "60,502 images of 11,316"}),
        ("cub", {"5,864 images of 100", "5,924 images of 100"}),
        ("cars196", {"8,054 images of 98", "8,131 images of 98"}),
        ("inaturalist", {"325,846 images of 5,690", "136,093 images of 2,452"}),
        ("in_shop", {"25,882 images of 3,997", "26,830 images of 3,985"}),
        ("landmarks", {"1,580,470 images of 81,313"}),
        ("omniglot", {"19,280 images of 964", "13,180 images of 659"}),
    ],
)
def test_counts_are_compared_with_the_published_ones(name, counts, small_data):
    with pytest.warns(UserWarning, match=r" lists 16 images of 4 classes, but the published split has") as warned:
        set_up(name, small_data(name))
    messages = [str(warning.message) for warning in warned if "published" in str(warning.message)]
    assert {re.search(r"split has (.*) classes:", message)[1] for message in messages} == counts


@SMALL
def test_validation_can_be_disabled(small_data):
    data = set_up("cub", small_data("cub"), val_classes=0)
    assert data.val_data is None
    assert data.val_dataloader() == []
    assert len(data.train_data) == 16
    assert data.train_data.training


@SMALL
def test_landmarks_have_no_test_set(small_data):
    data = set_up("landmarks", small_data("landmarks"))
    with pytest.raises(ValueError, match="LandmarksDataModule has no test images: use another"):
        data.test_dataloader()


@SMALL
@pytest.mark.filterwarnings("ignore:Cannot read the image")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_files_are_counted_at_the_end(num_workers, small_data, tmp_path):
    root = small_data("cub")
    for name in ("001.Bird/Bird_1_0.jpg", "101.Bird/Bird_101_2.jpg"):
        (root / "images" / name).write_text(f"<html>404 {name}</html>")
    data = set_up("cub", root, num_workers=num_workers, val_classes=0)
    embedder = ImageEmbedder(SmallConvNet(in_channels=3), embedding_dim=8, norm="batch")
    module = RetrievalModule(embedder, RecallAtKLoss((1, 2)), chunk_size=4)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[RetrievalEvaluation((1,))], **settings)
    with pytest.warns(UserWarning, match="training: 1 of 16 image files could not be read"):
        trainer.fit(module, datamodule=data)
    with pytest.warns(UserWarning, match="test: 1 of 16 image files could not be read"):
        (scores,) = trainer.test(module, datamodule=data, verbose=False)
    assert scores["test/recall@1"] * 15 == pytest.approx(round(scores["test/recall@1"] * 15), abs=1e-4)


def test_an_unknown_protocol_is_rejected():
    with pytest.raises(ValueError, match='protocol must be "all" or "reid", got \'ReID\''):
        datamodules.VehicleIDDataModule("anywhere", protocol="ReID")


@pytest.mark.parametrize("module", [*MODULES.values(), datamodules.RevisitedDataModule])
def test_a_tilde_is_the_home_folder(module, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "birds").mkdir()  # ImageFolderDataModule looks for it
    assert module("~/birds").root == tmp_path / "birds"
    assert datamodules.GlyphsDataModule("~/birds").file.parent == tmp_path / "birds"
