"""Stanford Online Products."""

from typing import Any

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, check_files, integers, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Unpack Stanford_Online_Products.zip from https://cvgl.stanford.edu/projects/lifted_struct/ and give the folder "
    "that holds Ebay_train.txt as root."
)


class SOPDataModule(RetrievalDataModule):
    """Finds other pictures of a product: 120,053 images of 22,634 products in 12 super-classes.

    Training 59,551 images of 11,318 products, test 60,502 of 11,316 others, as `Ebay_train.txt` and `Ebay_test.txt`
    have it; every test image queries all the others, Recall@1, 10, 100 and 1,000. `val_classes` of the training
    products are set aside for validation. A product has 2 to 12 images: with 4 of a class in a batch give the sampler
    `small_classes="drop"`, as published. Super-classes, such as "bicycle", are known to the sampler.

    Source: Oh Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR
    2016. Licence: none is stated; the images are eBay sellers'.

    Args:
        root: folder `Stanford_Online_Products`.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if a list or an image is not there, or a list is broken; when the data are set up.
    """

    def __init__(
        self, root: str = "data/Stanford_Online_Products", transforms: ImageTransforms | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Training and test, as the two lists have them."""
        return {"train": self.read_list("train", 59_551, 11_318), "test": self.read_list("test", 60_502, 11_316)}

    def read_list(self, split: str, images: int, classes: int) -> ImageFiles:
        """The images of one list, of which the published one has so many."""
        file = require_path(self.root / f"Ebay_{split}.txt", SOURCE)
        labels, super_labels, paths = read_columns(file, ("class_id", "super_class_id", "path"))
        data = ImageFiles(
            self.root,
            paths,
            integers(file, "class_id", labels),
            integers(file, "super_class_id", super_labels),
            transforms=self.transforms,
        )
        check_counts(file, data, images, classes)
        check_files(data, SOURCE)
        return data
