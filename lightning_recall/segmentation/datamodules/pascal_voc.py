"""Pascal VOC 2012, with or without the masks of SBD."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import SBDataset, VOCSegmentation

from lightning_recall.data.messages import shorten
from lightning_recall.data.tables import require_path, user_path
from lightning_recall.segmentation.data import IGNORED_PIXEL, MaskFormat, SegmentationFiles, SegmentationTransforms
from lightning_recall.segmentation.data.masks import read_ids
from lightning_recall.segmentation.datamodules.base import SegmentationDataModule

SOURCE = (
    "Download VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, unpack it, and pass "
    "the folder that holds VOCdevkit as root."
)
SBD_SOURCE = (
    "Download benchmark.tgz from "
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/, unpack it, and pass its "
    "folder benchmark_RELEASE/dataset, which holds img, cls, train.txt and val.txt, as sbd_root."
)
CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
TRANSFORMS = SegmentationTransforms(crop_size=512)


def voc_colors(count: int) -> NDArray[np.uint8]:
    """Colours (count, 3) of the palette in VOC's files: the bits of the id, spread over red, green and blue.

    >>> voc_colors(3).tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    colors = np.zeros((count, 3), dtype=np.uint8)
    for index in range(count):
        for bit in range(8):  # of the id; bits 0, 3 and 6 make red, 1, 4 and 7 green, 2 and 5 blue
            colors[index, bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return colors


def read_voc(path: str | Path) -> NDArray[np.integer]:
    """Ids (H, W) of a mask of VOC (palette PNG) or SBD (.mat)."""
    if not str(path).endswith(".mat"):
        return read_ids(path)
    from scipy.io import loadmat

    ids: NDArray[np.integer] = loadmat(str(path))["GTcls"][0]["Segmentation"][0]
    return ids


class PascalVOCDataModule(SegmentationDataModule):
    """Pascal VOC 2012: 1,464 training and 1,449 validation photographs of different sizes; 20 classes and background.

    Border pixels (255) are ignored. The labels of the official test set are not public: validation and test both use
    the validation images, as most papers do. A score of the best checkpoint on them is therefore slightly optimistic.

    With `sbd_root`, the training images are those that papers call "trainaug": VOC's, with its masks, and all others of
    the Semantic Boundaries Dataset (its `train` and `val`) that are not in VOC's validation set. With the complete data
    sets, these are 10,582 images.

    Sources: Everingham, Van Gool, Williams, Winn, Zisserman, "The Pascal Visual Object Classes Challenge", IJCV 2010;
    Hariharan, Arbelaez, Bourdev, Maji, Malik, "Semantic Contours from Inverse Detectors", ICCV 2011. Licence: images
    from Flickr under its terms of use.

    Args:
        root: folder that holds `VOCdevkit/VOC2012`.
        sbd_root: folder of SBD that holds `img`, `cls`, `train.txt` and `val.txt`; None: only VOC. Needs scipy.
        transforms: settings of the joint transforms.
        eval_batch_size: images in an evaluation batch; 1 since they have different sizes, unless `transforms.resize` is
            set.
        kwargs: passed to `SegmentationDataModule`.

    Raises:
        ValueError: at setup, if a folder or a list is missing.
        ImportError: if `sbd_root` is given and scipy is missing.
    """

    class_names = CLASSES
    colors = voc_colors(len(CLASSES))

    def __init__(
        self,
        root: str = "data/voc",
        sbd_root: str | None = None,
        transforms: SegmentationTransforms | None = TRANSFORMS,
        eval_batch_size: int | None = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(transforms=transforms or TRANSFORMS, eval_batch_size=eval_batch_size, **kwargs)
        self.root = user_path(root)
        self.sbd_root = None if sbd_root is None else user_path(sbd_root)

    def read(self) -> dict[str, SegmentationFiles]:
        """Reads the lists of VOC and SBD."""
        train, val = self.read_voc("train"), self.read_voc("val")
        if self.sbd_root is not None:
            known = {Path(image).stem for image, _ in (*train, *val)}
            others = {Path(image).stem: (image, mask) for image, mask in self.read_sbd(self.sbd_root)}
            train += [others[stem] for stem in sorted(set(others) - known)]
        val_data = self.data_of(val)
        return {"train": self.data_of(train), "val": val_data, "test": val_data}

    def data_of(self, files: list[tuple[str, str]]) -> SegmentationFiles:
        """The data set of pairs (image, mask)."""
        ids = {index: index for index in range(self.num_classes)} | {IGNORED_PIXEL: IGNORED_PIXEL}
        mask_format = MaskFormat(ids, read_voc, self.class_names)
        images, masks = zip(*files, strict=True) if files else ((), ())
        return SegmentationFiles(images, masks, mask_format, self.class_names, self.transforms)

    def read_voc(self, split: str) -> list[tuple[str, str]]:
        """Pairs (image, mask) of a list of VOC."""
        require_path(self.root / "VOCdevkit/VOC2012/ImageSets/Segmentation" / f"{split}.txt", SOURCE)
        listed = VOCSegmentation(str(self.root), year="2012", image_set=split)
        return list(zip(listed.images, listed.targets, strict=True))

    def read_sbd(self, root: Path) -> list[tuple[str, str]]:
        """Pairs (image, mask) of both lists of SBD."""
        try:
            import scipy.io  # noqa: F401  # torchvision and read_voc need it
        except ImportError as error:
            raise ImportError("The masks of SBD need scipy: pip install scipy") from error
        files: list[tuple[str, str]] = []
        for split in ("train", "val"):
            require_path(root / f"{split}.txt", SBD_SOURCE)
            listed = SBDataset(str(root), image_set=split, mode="segmentation")
            files += zip(listed.images, listed.masks, strict=True)
        if not files:
            raise ValueError(f"{shorten(root)}: train.txt and val.txt name no image. {SBD_SOURCE}")
        return files
