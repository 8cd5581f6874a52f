"""Draws small data sets for segmentation in their real formats."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_recall.segmentation.datamodules.pascal_voc import voc_colors

SIZE = (36, 48)  # height, width


def random_image(rng, size=SIZE):
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def random_mask(rng, ids, size=SIZE):
    """Ids (H, W) in blocks of 6 x 6 pixels; each id occurs."""
    blocks = rng.choice(ids, (-(-size[0] // 6), -(-size[1] // 6)))
    blocks.flat[: len(ids)] = ids
    return np.kron(blocks, np.ones((6, 6), dtype=int))[: size[0], : size[1]]


def save(array, path):
    """Writes an image; creates its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def save_palette(ids, path, colors):
    image = Image.fromarray(np.uint8(ids))
    image.putpalette(np.asarray(colors, dtype=np.uint8).ravel().tolist())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def save_png16(channels, path):
    """Writes (H, W, 3) uint16 as a 16-bit RGB PNG, which Pillow cannot write."""
    height, width, _ = channels.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def draw_camvid(root, counts=(6, 3, 3), suffix=".png", seed=0):
    """SegNet's layout: train, trainannot, val, ...; ids 0 to 11, where 11 is void."""
    rng, root = np.random.default_rng(seed), Path(root)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for index in range(count):
            name = f"0001TP_{index:06d}"
            save(random_image(rng), root / split / f"{name}{suffix}")
            save(np.uint8(random_mask(rng, np.arange(12))), root / f"{split}annot" / f"{name}.png")
    return root


def draw_cityscapes(root, counts=(6, 3), seed=0):
    """leftImg8bit and gtFine with two cities per split; masks with all 34 ids."""
    rng, root = np.random.default_rng(seed), Path(root)
    for split, count in zip(("train", "val"), counts, strict=True):
        for index in range(count):
            city = f"{split}{'ab'[index % 2]}"
            name = f"{city}_{index:06d}_000019"
            save(random_image(rng), root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            save(
                np.uint8(random_mask(rng, np.arange(34))),
                root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png",
            )
    return root


def draw_voc(root, counts=(6, 3), seed=0):
    """VOCdevkit/VOC2012 with photographs of different sizes and palette masks."""
    rng, base = np.random.default_rng(seed), Path(root) / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, count in zip(("train", "val"), counts, strict=True):
        names = [f"2007_{index:06d}" for index in range(start, start + count)]
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for index, name in enumerate(names):
            size = SIZE if index % 2 else SIZE[::-1]
            save(random_image(rng, size), base / "JPEGImages" / f"{name}.jpg")
            ids = random_mask(rng, [*range(21), 255], size)
            save_palette(ids, base / "SegmentationClass" / f"{name}.png", voc_colors(256))
        start += count
    return Path(root)


def draw_sbd(root, names=("2007_000002", "2007_000007", "2008_000001", "2008_000002"), seed=1):
    """SBD's img, cls, train.txt and val.txt; by default two names are in `draw_voc`'s train and val."""
    from scipy.io import savemat

    rng, root = np.random.default_rng(seed), Path(root)
    (root / "cls").mkdir(parents=True, exist_ok=True)
    for name in names:
        save(random_image(rng), root / "img" / f"{name}.jpg")
        kind = np.zeros(1, dtype=[("Segmentation", object), ("Boundaries", object)])
        kind["Segmentation"][0] = np.uint8(random_mask(rng, np.arange(21)))
        kind["Boundaries"][0] = np.zeros((20, 1))
        savemat(root / "cls" / f"{name}.mat", {"GTcls": kind})
    half = len(names) // 2
    (root / "train.txt").write_text("".join(f"{name}\n" for name in names[:half]))
    (root / "val.txt").write_text("".join(f"{name}\n" for name in names[half:]))
    return root


def draw_synthia_sequence(root, frames=10, cameras=("Omni_F", "Omni_B"), name="SYNTHIA-SEQS-05-SUMMER", seed=0):
    """A sequence folder in root: RGB and GT/LABELS, Stereo_Left, 16-bit masks with instances in the second channel."""
    rng, root = np.random.default_rng(seed), Path(root)
    for camera in cameras:
        for frame in range(frames):
            inner = Path("Stereo_Left") / camera / f"{frame:06d}.png"
            save(random_image(rng), root / name / "RGB" / inner)
            save_synthia_mask(random_mask(rng, np.arange(16)), root / name / "GT" / "LABELS" / inner, rng)
    return root


def draw_rand_cityscapes(root, count=10, seed=0):
    """RGB and GT/LABELS with ids 0 to 22."""
    rng, root = np.random.default_rng(seed), Path(root)
    for index in range(count):
        save(random_image(rng), root / "RGB" / f"{index:07d}.png")
        save_synthia_mask(random_mask(rng, np.arange(23)), root / "GT" / "LABELS" / f"{index:07d}.png", rng)
    return root


def save_synthia_mask(ids, path, rng):
    instances = rng.integers(0, 3000, ids.shape)
    save_png16(np.stack([ids, instances, np.zeros_like(ids)], 2).astype(np.uint16), path)


FOLDER_CLASSES = {"background": (0, 0, 0), "leaf": (40, 160, 60), "spot": (200, 30, 30)}


def draw_mask_folder(root, kind="ids", layout="flat", count=10, seed=0):
    """images/ and masks/ with the classes background, leaf and spot, and a file of classes.

    Args:
        root: the folder.
        kind: "ids", "ids16", "palette" or "colors".
        layout: "flat", "inner" (images/train, ...) or "outer" (train/images, ...).
        count: images per split.
        seed: random seed.
    """
    rng, root = np.random.default_rng(seed), Path(root)
    os.makedirs(root, exist_ok=True)
    for split in ("",) if layout == "flat" else ("train", "val", "test"):
        folders = [Path(split, name) if layout == "outer" else Path(name, split) for name in ("images", "masks")]
        for index in range(count):
            ids = random_mask(rng, np.arange(3))
            save(random_image(rng), root / folders[0] / f"plant {index:03d}.jpg")
            path = root / folders[1] / f"plant {index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "palette":
                save_palette(ids, path, list(FOLDER_CLASSES.values()))
            elif kind == "colors":
                save(np.array(list(FOLDER_CLASSES.values()), dtype=np.uint8)[ids], path)
            else:
                save(ids.astype(np.uint16 if kind == "ids16" else np.uint8), path)
    if kind == "colors":
        lines = [f"{name},{r},{g},{b}" for name, (r, g, b) in FOLDER_CLASSES.items()]
        (root / "classes.csv").write_text("\n".join(["name,r,g,b", *lines]) + "\n")
    else:
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in FOLDER_CLASSES))
    return root
