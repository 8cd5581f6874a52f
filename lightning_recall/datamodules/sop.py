"""Stanford Online Products."""

from typing import Any

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.tables import (
    check_counts,
    check_files,
    parse_integers,
    read_columns,
    require_path,
    user_path,
)
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Unpack Stanford_Online_Products.zip from https://cvgl.stanford.edu/projects/lifted_struct/ and pass the folder "
    "that holds Ebay_train.txt as root."
)


class SOPDataModule(RetrievalDataModule):
    """Stanford Online Products: 120,053 images of 22,634 products; retrieves images of the same product.

    Train: 59,551 images of 11,318 products, in `Ebay_train.txt`. Test: 60,502 images of 11,316 other products, in
    `Ebay_test.txt`; every test image is a query against all others. Metrics: Recall@1, 10, 100, 1,000. `val_classes` of
    the training products are held out for validation. A product has 2 to 12 images: with `samples_per_class=4`, use
    `small_classes="drop"`, as in the paper. The 12 super-classes, such as "bicycle", are passed to the sampler.

    Source: Oh Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR
    2016. Licence: none is stated; the eBay sellers hold the copyright of the images.

    Args:
        root: folder `Stanford_Online_Products`.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if a list or an image is missing, or a list is malformed.
    """

    def __init__(
        self,
        root: str = "data/Stanford_Online_Products",
        transforms: ImageTransforms | None = ImageTransforms(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Reads both lists."""
        return {"train": self.read_list("train", 59_551, 11_318), "test": self.read_list("test", 60_502, 11_316)}

    def read_list(self, split: str, images: int, classes: int) -> ImageFiles:
        """Reads one list and checks it against the published numbers of images and classes."""
        file = require_path(self.root / f"Ebay_{split}.txt", SOURCE)
        labels, super_labels, paths = read_columns(file, ("class_id", "super_class_id", "path"))
        data = ImageFiles(
            self.root,
            paths,
            parse_integers(file, "class_id", labels),
            parse_integers(file, "super_class_id", super_labels),
            transforms=self.transforms,
        )
        check_counts(file, data, images, classes)
        check_files(data, SOURCE)
        return data
