"""PKU VehicleID."""

from typing import Any, Literal

import numpy as np

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_files, integers, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "VehicleID_V1.0 is given out on request: https://www.pkuml.org/resources/pku-vehicleid.html. Give the folder that "
    "holds image/ and train_test_split/ as root."
)
TEST_SETS = {"small": 800, "medium": 1_600, "large": 2_400}


class VehicleIDDataModule(RetrievalDataModule):
    """Finds other pictures of a vehicle: 221,763 images of 26,267 vehicles, of which some 110,000 are for training.

    Three test sets, "small", "medium" and "large", of 800, 1,600 and 2,400 vehicles; their scores are logged as
    `test/small/recall@1` and so on. Publications differ in the number of images, so none is checked. `val_classes` of
    the training vehicles are set aside for validation.

    Source: Liu, Tian, Wang, Pang, Huang, "Deep Relative Distance Learning: Tell the Difference Between Similar
    Vehicles", CVPR 2016. Licence: research only, on request.

    Args:
        root: folder `VehicleID_V1.0`.
        protocol: "all": every image queries all the others, as in the paper's tables; "reid": one image of each
            vehicle, drawn at random, is the gallery, and all the others query it, as in vehicle re-identification,
            where the mean over ten draws is usual. The draw follows `seed`.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if a list or an image is not there, or a list is broken; when the data are set up.
    """

    def __init__(
        self,
        root: str = "data/VehicleID_V1.0",
        protocol: Literal["all", "reid"] = "all",
        transforms: ImageTransforms | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if protocol not in ("all", "reid"):
            raise ValueError(f'protocol must be "all" or "reid", got {protocol!r}.')
        self.root = user_path(root)
        self.protocol = protocol
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, Any]:
        """Training, and the three test sets."""
        tests = {name: self.read_list(f"test_list_{size}.txt") for name, size in TEST_SETS.items()}
        if self.protocol == "reid":
            for data in tests.values():
                data.is_gallery = one_of_each_class(data.labels, self.seed)
                data.is_query = ~data.is_gallery
        return {"train": self.read_list("train_list.txt"), "test": tests}

    def read_list(self, name: str) -> ImageFiles:
        """The images of one list: number of the image, number of the vehicle."""
        file = require_path(self.root / "train_test_split" / name, SOURCE)
        numbers, vehicles = read_columns(file, ("image", "vehicle"), header=False)
        paths = [f"image/{number:07d}.jpg" for number in integers(file, "image", numbers)]
        data = ImageFiles(self.root, paths, integers(file, "vehicle", vehicles), transforms=self.transforms)
        check_files(data, SOURCE)
        return data


def one_of_each_class(labels: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Marks one row of each class, drawn at random: (N,) bool."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return np.isin(np.arange(len(labels)), order[first])
