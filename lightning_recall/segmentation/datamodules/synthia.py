"""SYNTHIA: rendered streets, as video sequences and as single images."""

from pathlib import Path
from typing import Any

import numpy as np

from lightning_recall.data.messages import quote, shorten
from lightning_recall.data.tables import require_path, user_path
from lightning_recall.segmentation.data import IGNORED_PIXEL, MaskFormat, SegmentationFiles, SegmentationTransforms
from lightning_recall.segmentation.data.masks import read_first_channel
from lightning_recall.segmentation.datamodules.base import SegmentationDataModule
from lightning_recall.segmentation.datamodules.cityscapes import CityscapesDataModule
from lightning_recall.segmentation.datamodules.splits import hold_out

SOURCE = (
    "Download {name} from https://synthia-dataset.net/downloads/, unpack it, and pass the folder that holds "
    "{holds} as root."
)
SEQUENCE_CLASSES = {
    "sky": (1, (128, 128, 128)),
    "building": (2, (128, 0, 0)),
    "road": (3, (128, 64, 128)),
    "sidewalk": (4, (0, 0, 192)),
    "fence": (5, (64, 64, 128)),
    "vegetation": (6, (128, 128, 0)),
    "pole": (7, (192, 192, 128)),
    "car": (8, (64, 0, 128)),
    "traffic sign": (9, (192, 128, 128)),
    "pedestrian": (10, (64, 64, 0)),
    "bicycle": (11, (0, 128, 192)),
    "lane marking": (12, (0, 175, 0)),
    "traffic light": (15, (0, 128, 128)),
}
"""name -> id and colour, from the data set's description; 0 is void, 13 and 14 are reserved"""
SEQUENCE_VOID = (0, 13, 14)
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
"""as in the published code of recall loss"""

RAND_IDS = {
    "road": 3,
    "sidewalk": 4,
    "building": 2,
    "wall": 21,
    "fence": 5,
    "pole": 7,
    "traffic light": 15,
    "traffic sign": 9,
    "vegetation": 6,
    "sky": 1,
    "person": 10,
    "rider": 17,
    "car": 8,
    "bus": 19,
    "motorcycle": 12,
    "bicycle": 11,
}
"""name of Cityscapes -> id, in the order of Cityscapes"""
RAND_VOID = (0, 13, 14, 16, 18, 20, 22)  # void, parking, road work, terrain, truck, train, lane marking
RAND_FRACTIONS = {"val": 0.05, "test": 0.1}

TRANSFORMS = SegmentationTransforms(resize=(384, 768), scale=(1.0, 1.0))


class SynthiaSequencesDataModule(SegmentationDataModule):
    """SYNTHIA sequences: rendered video of a driving car in one weather each, 1280 x 760 pixels; 13 classes.

    A sequence, such as SYNTHIA-SEQS-05-SUMMER, has frames of eight cameras: four directions, left and right. The ids
    are in the first channel of 16-bit PNG files (instances in the second); 0 (void) and the reserved ids 13 and 14 are
    ignored.

    There is no official split. Here the frames of each sequence are split by time: the first 70 % train, the next 10 %
    validate, the last 20 % test, and all cameras of a frame are in the same split. The published code of recall loss
    (github.com/PotatoTian/recall-semseg) has the same fractions, but shuffles the frames, so that almost every test
    frame has its neighbour in the training set; its scores are not comparable. It also counts void and the reserved ids
    as classes. Like that code, the default resizes images to 768 x 384 pixels and uses all cameras.

    Source: Ros, Sellart, Materzynska, Vazquez, Lopez, "The SYNTHIA Dataset", CVPR 2016. Licence: CC BY-NC-SA 3.0.

    Args:
        root: folder of one sequence, which holds `RGB` and `GT`, or folder of several sequences.
        sequences: names of the sequences in root; None: all.
        sides: "Stereo_Left", "Stereo_Right" or both; None: all that are there.
        cameras: some of "Omni_F", "Omni_B", "Omni_L" and "Omni_R"; None: all that are there.
        transforms: settings of the joint transforms.
        kwargs: passed to `SegmentationDataModule`.

    Raises:
        ValueError: at setup, if a sequence, camera or mask is missing.
    """

    class_names = tuple(SEQUENCE_CLASSES)
    colors = np.array([color for _, color in SEQUENCE_CLASSES.values()], dtype=np.uint8)

    def __init__(
        self,
        root: str = "data/synthia",
        sequences: tuple[str, ...] | None = None,
        sides: tuple[str, ...] | None = None,
        cameras: tuple[str, ...] | None = None,
        transforms: SegmentationTransforms | None = TRANSFORMS,
        **kwargs: Any,
    ) -> None:
        super().__init__(transforms=transforms or TRANSFORMS, **kwargs)
        self.root = user_path(root)
        self.sequences, self.sides, self.cameras = sequences, sides, cameras

    def read(self) -> dict[str, SegmentationFiles]:
        """Splits the frames of each sequence by time."""
        source = SOURCE.format(name="a sequence such as SYNTHIA-SEQS-05-SUMMER", holds="RGB and GT, or the sequences,")
        require_path(self.root, source)
        parts: dict[str, list[Path]] = {split: [] for split in FRACTIONS}
        for folder in self.sequence_folders(source):
            images = self.list_images(folder, source)
            frames = sorted({image.name for image in images})
            first_val = round(FRACTIONS["train"] * len(frames))
            first_test = round((FRACTIONS["train"] + FRACTIONS["val"]) * len(frames))
            split_of = {
                name: "train" if index < first_val else "val" if index < first_test else "test"
                for index, name in enumerate(frames)
            }
            for image in images:
                parts[split_of[image.name]].append(image)
        return {split: self.data_of(images) for split, images in parts.items()}

    def sequence_folders(self, source: str) -> list[Path]:
        """Folders that hold RGB and GT."""
        if self.sequences is not None:
            return [require_path(self.root / name, source) for name in self.sequences]
        found = [path.parent for path in sorted([*self.root.glob("RGB"), *self.root.glob("*/RGB")])]
        if not found:
            raise ValueError(f"{shorten(self.root)} holds no sequence, a folder with RGB and GT. {source}")
        return found

    def list_images(self, folder: Path, source: str) -> list[Path]:
        """Images RGB/SIDE/CAMERA/FRAME.png of the chosen cameras.

        Raises:
            ValueError: if a chosen side or camera has none.
        """
        for side in self.sides or ("*",):
            for camera in self.cameras or ("*",):
                if not any((folder / "RGB").glob(f"{side}/{camera}/*.png")):
                    raise ValueError(f"{shorten(folder)} holds no RGB/{side}/{camera}/*.png. {source}")
        return [
            path
            for path in sorted((folder / "RGB").glob("*/*/*.png"))
            if (self.cameras is None or path.parent.name in self.cameras)
            and (self.sides is None or path.parent.parent.name in self.sides)
        ]

    def data_of(self, images: list[Path]) -> SegmentationFiles:
        """The data set of some images; the mask of RGB/SIDE/CAMERA/FRAME.png is GT/LABELS/SIDE/CAMERA/FRAME.png."""
        ids = {number: index for index, (number, _) in enumerate(SEQUENCE_CLASSES.values())}
        ids |= dict.fromkeys(SEQUENCE_VOID, IGNORED_PIXEL)
        masks = [image.parents[3] / "GT" / "LABELS" / Path(*image.parts[-3:]) for image in images]
        mask_format = MaskFormat(ids, read_first_channel, self.class_names)
        return SegmentationFiles(images, masks, mask_format, self.class_names, self.transforms)


class RandCityscapesDataModule(SegmentationDataModule):
    """SYNTHIA-RAND-CITYSCAPES: 9,400 rendered street scenes without order, 1280 x 760 pixels; 16 classes.

    The 16 classes are those that the data set shares with Cityscapes, in its order, as in work on domain adaptation
    from SYNTHIA to Cityscapes; other ids, such as lane markings, are ignored. The ids are in the first channel of
    16-bit PNG files. There is no official split: a random tenth is for the test and a twentieth for validation, drawn
    with `seed`.

    Source: Ros, Sellart, Materzynska, Vazquez, Lopez, "The SYNTHIA Dataset", CVPR 2016. Licence: CC BY-NC-SA 3.0.

    Args:
        root: folder `RAND_CITYSCAPES`, which holds `RGB` and `GT`.
        transforms: settings of the joint transforms.
        kwargs: passed to `SegmentationDataModule`.

    Raises:
        ValueError: at setup, if a folder or a mask is missing.
    """

    class_names = tuple(RAND_IDS)
    colors = CityscapesDataModule.colors[[CityscapesDataModule.class_names.index(name) for name in RAND_IDS]]

    def __init__(
        self,
        root: str = "data/synthia/RAND_CITYSCAPES",
        transforms: SegmentationTransforms | None = TRANSFORMS,
        **kwargs: Any,
    ) -> None:
        super().__init__(transforms=transforms or TRANSFORMS, **kwargs)
        self.root = user_path(root)

    def read(self) -> dict[str, SegmentationFiles]:
        """Lists RGB/*.png with GT/LABELS/*.png, and holds out images for validation and test."""
        source = SOURCE.format(name="SYNTHIA-RAND-CITYSCAPES (CVPR16)", holds="RGB and GT")
        folder, labels = require_path(self.root / "RGB", source), require_path(self.root / "GT/LABELS", source)
        images = sorted(folder.glob("*.png"))
        if not images:
            raise ValueError(f"{shorten(folder)} holds no *.png, but {quote(self.root.name)} should. {source}")
        ids = {number: index for index, number in enumerate(RAND_IDS.values())}
        ids |= dict.fromkeys(RAND_VOID, IGNORED_PIXEL)
        mask_format = MaskFormat(ids, read_first_channel, self.class_names)
        masks = [labels / image.name for image in images]
        data = SegmentationFiles(images, masks, mask_format, self.class_names, self.transforms)
        return hold_out(data, RAND_FRACTIONS, self.seed, self.root)
