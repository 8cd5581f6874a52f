"""PKU VehicleID."""

from typing import Any, Literal

import numpy as np

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_files, parse_integers, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "VehicleID_V1.0 is available on request: https://www.pkuml.org/resources/pku-vehicleid.html. Pass the folder that "
    "holds image/ and train_test_split/ as root."
)
TEST_SETS = {"small": 800, "medium": 1_600, "large": 2_400}


class VehicleIDDataModule(RetrievalDataModule):
    """VehicleID: 221,763 images of 26,267 vehicles; retrieves images of the same vehicle.

    Train: about 110,000 images. Test: three sets, "small", "medium" and "large", of 800, 1,600 and 2,400 vehicles;
    their scores are logged as `test/small/recall@1` and so on. Published image counts differ, so they are not checked.
    `val_classes` of the training vehicles are held out for validation.

    Source: Liu, Tian, Wang, Pang, Huang, "Deep Relative Distance Learning: Tell the Difference Between Similar
    Vehicles", CVPR 2016. Licence: research only, on request.

    Args:
        root: folder `VehicleID_V1.0`.
        protocol: "all": every image is a query against all others, as in the paper's tables; "reid": one image of each
            vehicle, drawn with `seed`, forms the gallery and all others are queries, as in vehicle re-identification;
            scores are usually averaged over ten draws.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if a list or an image is missing, or a list is malformed.
    """

    def __init__(
        self,
        root: str = "data/VehicleID_V1.0",
        protocol: Literal["all", "reid"] = "all",
        transforms: ImageTransforms | None = ImageTransforms(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if protocol not in ("all", "reid"):
            raise ValueError(f'protocol must be "all" or "reid", got {protocol!r}.')
        self.root = user_path(root)
        self.protocol = protocol
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, Any]:
        """Reads the training set and the three test sets."""
        tests = {name: self.read_list(f"test_list_{size}.txt") for name, size in TEST_SETS.items()}
        if self.protocol == "reid":
            for data in tests.values():
                data.is_gallery = one_of_each_class(data.labels, self.seed)
                data.is_query = ~data.is_gallery
        return {"train": self.read_list("train_list.txt"), "test": tests}

    def read_list(self, name: str) -> ImageFiles:
        """Reads one list; each line holds an image id and a vehicle id."""
        file = require_path(self.root / "train_test_split" / name, SOURCE)
        numbers, vehicles = read_columns(file, ("image", "vehicle"), header=False)
        paths = [f"image/{number:07d}.jpg" for number in parse_integers(file, "image", numbers)]
        data = ImageFiles(self.root, paths, parse_integers(file, "vehicle", vehicles), transforms=self.transforms)
        check_files(data, SOURCE)
        return data


def one_of_each_class(labels: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Marks one random item of each class: (N,) bool."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return np.isin(np.arange(len(labels)), order[first])
