import functools
import os
import pickle
import sys
import zlib

import numpy as np
import other_lightning  # noqa: F401  # first: may replace pytorch_lightning
import pytest
import torch
from PIL import Image

# Otherwise matplotlib looks for a screen.
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # hypothesis and older libraries draw from it
    yield
    if torch.distributed.is_initialized():  # would change what Lightning does in the next tests
        torch.distributed.destroy_process_group()
        pytest.fail("The test left a torch.distributed process group: start it in processes of its own.")


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """Runs the test in an empty folder, where it may write files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(in_tmp_path, monkeypatch):  # noqa: ARG001  # the command writes to its working folder
    """`lightning-recall` in process, in an empty folder."""
    from lightning_recall.cli import main

    monkeypatch.setattr("sys.argv", ["lightning-recall"])  # otherwise Lightning parses pytest's arguments
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *args: main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def quick_parsing():
    """Finds the thousands of subclasses of torch's modules once, and not for each setting of each command."""
    typehints = sys.modules.get("jsonargparse._typehints")
    find = getattr(typehints, "get_all_subclass_paths", None)
    with pytest.MonkeyPatch.context() as patch:
        if find is not None:
            patch.setattr(typehints, "get_all_subclass_paths", functools.cache(find))
        yield


@pytest.fixture(scope="session")
def all_glyphs(tmp_path_factory):
    """A folder with all glyphs."""
    from lightning_recall.datamodules import GlyphsDataModule

    folder = tmp_path_factory.mktemp("all_glyphs")
    GlyphsDataModule(root=str(folder)).prepare_data()
    return folder


@pytest.fixture(scope="session")
def glyph_folder(all_glyphs, tmp_path_factory):
    """A folder with every fourth pair of characters, 257 for training and 257 for the test, to save time."""
    folder = tmp_path_factory.mktemp("glyphs")
    (file,) = all_glyphs.iterdir()
    with np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    _, number = np.unique(labels, return_inverse=True)
    kept = number % 8 < 2
    np.savez(folder / file.name, images=images[kept], labels=labels[kept])
    return folder


TRAIN, TEST = range(1, 5), range(101, 105)  # classes


def draw(path, size=(40, 30), mode="RGB", **kwargs):
    """Draws an image file with some structure, for JPEG, that is different for each path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.indices(size[::-1])
    red, green, blue, _ = zlib.crc32(os.fsencode("/".join(path.parts[-3:]))).to_bytes(4, "big")
    image = np.stack([y * 5 + red, x * 7 + green, y + x + blue], 2).astype(np.uint8)
    Image.fromarray(image).convert(mode).save(path, **kwargs)


def class_and_number(classes=(*TRAIN, *TEST), images=4):
    """Class and number of each image of a small data set."""
    return [(c, i) for c in classes for i in range(images)]


def sop(root):
    for split, classes in (("train", TRAIN), ("test", TEST)):
        lines = ["image_id class_id super_class_id path"]
        for number, (c, i) in enumerate(class_and_number(classes), 1):
            lines.append(f"{number} {c} {c % 2 + 1} bicycle_final/{c}_{i}.JPG")
            draw(root / "bicycle_final" / f"{c}_{i}.JPG", mode="L" if i else "RGB", format="JPEG")
        (root / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")


def cub(root):
    classes = (1, 2, 3, 100, 101, 102, 103, 200)  # 1 to 100 are for training
    names = [f"{c:03}.Bird/Bird_{c}_{i}.jpg" for c, i in class_and_number(classes)]
    for name in names:
        draw(root / "images" / name)
    (root / "images.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(names, 1)))
    labels = "".join(f"{n} {int(name[:3])}\n" for n, name in enumerate(names, 1))
    (root / "image_class_labels.txt").write_text(labels)


def inaturalist(root):
    for split, classes in (("train", TRAIN), ("test", TEST)):
        paths = [f"train_val2018/{('Aves', 'Plantae')[c % 2]}/{c}/{i:032x}.jpg" for c, i in class_and_number(classes)]
        for path in paths:
            draw(root / path)
        (root / "Inat_dataset_splits").mkdir(exist_ok=True)
        (root / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt").write_text("\n".join(paths) + "\n")


def vehicle_id(root):
    folder = root / "train_test_split"
    folder.mkdir(parents=True)
    lists = {"train_list": TRAIN, "test_list_800": TEST[:2], "test_list_1600": TEST[:3], "test_list_2400": TEST}
    for name, classes in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{c}{i} {c}\n" for c, i in class_and_number(classes)))
    for c, i in class_and_number():
        draw(root / "image" / f"{int(f'{c}{i}'):07d}.jpg")


def in_shop(root):
    lines = ["32", "image_name                    item_id     evaluation_status"]
    for c, i in class_and_number():
        part = "train" if c in TRAIN else ("query" if i < 2 else "gallery")
        path = f"img/WOMEN/Dresses/id_{c:08}/0{i}_1_front.jpg"
        lines.append(f"{path}    id_{c:08}   {part}  ")
        draw(root / path)
    (root / "Eval").mkdir()
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def cars196(root):
    """The oldest layout; the tests draw those of the devkit and of Kaggle."""
    from scipy.io import savemat

    kinds = [
        (name, object) for name in ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    ]
    annotations = np.zeros((1, 32), dtype=kinds)
    for n, (c, i) in enumerate(class_and_number((1, 2, 3, 98, 99, 100, 101, 196))):
        annotations[0, n] = (f"car_ims/{n + 1:06}.jpg", 1, 1, 9, 9, c, i % 2)
        draw(root / "car_ims" / f"{n + 1:06}.jpg", mode="L" if i == 3 else "RGB")
    savemat(root / "cars_annos.mat", {"annotations": annotations})


def landmarks(root):
    lines = ["landmark_id,images"]
    for c in TRAIN:
        ids = [f"{c * 77 + i:016x}"[::-1] for i in range(4)]
        lines.append(f"{c},{' '.join(ids)}")
        for name in ids:
            draw(root / "train" / name[0] / name[1] / name[2] / f"{name}.jpg")
    (root / "train_clean.csv").write_text("\n".join(lines) + "\n")


def omniglot(root):
    for part, classes in (("background", TRAIN), ("evaluation", TEST)):
        for c, i in class_and_number(classes):
            folder = root / "omniglot-py" / f"images_{part}" / f"Alphabet{c % 2}" / f"character{c:02}"
            draw(folder / f"{c:04}_{i:02}.png", size=(105, 105), mode="1")


def revisited(root):
    """Two queries and six images of Oxford, and two distractors."""
    folder = root / "roxford5k"
    for name in ("query_0", "query_1", *(f"image_{i}" for i in range(6))):
        draw(folder / "jpg" / f"{name}.jpg", size=(60, 40))
    queries = [
        {"bbx": [5.2, 3.0, 25.9, 33.0], "easy": [0], "hard": [2], "junk": [4]},
        {"bbx": [0.0, 0.0, 60.0, 40.0], "easy": [], "hard": [1, 3], "junk": []},
    ]
    truth = {"qimlist": ["query_0", "query_1"], "imlist": [f"image_{i}" for i in range(6)], "gnd": queries}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, protocol=2))
    for name in ("a/b.jpg", "c.jpg"):
        draw(root / "revisitop1m" / "jpg" / name)
    (root / "revisitop1m" / "revisitop1m.txt").write_text("a/b.jpg\nc.jpg\n")


def image_folder(root):
    for c, i in class_and_number():
        draw(root / f"class {c}" / f"{i}.png", size=(30 + 7 * i, 40), mode=("RGB", "L", "RGBA", "P")[i])


def image_table(root):
    lines = ["path,label,split"]
    for c, i in class_and_number():
        draw(root / "photos" / f"{c}_{i}.jpg", mode="CMYK" if i == 0 else "RGB")
        lines.append(f"photos/{c}_{i}.jpg,class {c},{'train' if c in TRAIN else 'test'}")
    (root / "images.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def small_data(tmp_path):
    """Draws a small data set in the original format: small_data("sop") returns its root."""

    def make(name):
        root = tmp_path / name
        root.mkdir()
        globals()[name](root)
        return root

    return make
