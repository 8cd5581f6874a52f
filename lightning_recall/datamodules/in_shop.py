"""In-Shop Clothes Retrieval of DeepFashion."""

from typing import Any

import numpy as np

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, check_files, encode_labels, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Download the In-shop Clothes Retrieval Benchmark from https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html, "
    "unpack img.zip or img_highres.zip in root, and put list_eval_partition.txt in root/Eval/."
)


class InShopDataModule(RetrievalDataModule):
    """In-Shop Clothes: 52,712 images of 7,982 items; retrieves shop images of the same item.

    Train: 25,882 images of 3,997 items. Test: 14,218 queries and 12,612 gallery images of 3,985 other items. Metrics:
    Recall@1, 10, 20, 30, 40, 50. `val_classes` of the training items are held out for validation. Some items have fewer
    than 4 images: with `samples_per_class=4`, use `small_classes="drop"`.

    Source: Liu, Luo, Qiu, Wang, Tang, "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
    Annotations", CVPR 2016. Licence: non-commercial research.

    Args:
        root: folder that holds `Eval` and `img`, or `img_highres`.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if the list or an image is missing, or the list is malformed.
    """

    def __init__(
        self, root: str = "data/InShop", transforms: ImageTransforms | None = ImageTransforms(), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Reads the training set, and a test set of queries and gallery."""
        file = require_path(self.root / "Eval" / "list_eval_partition.txt", SOURCE)
        names = ("image_name", "item_id", "evaluation_status")
        paths, items, parts = read_columns(file, names, skip=1)  # the first line holds the number of images
        unknown = set(parts) - {"train", "query", "gallery"}
        if unknown:
            raise ValueError(f"{file}: evaluation_status must be train, query or gallery, got {sorted(unknown)[0]!r}.")
        if not (self.root / "img").exists() and (self.root / "img_highres").exists():
            paths = [path.replace("img/", "img_highres/", 1) for path in paths]
        (labels,) = encode_labels(items)
        part = np.array(parts)
        data = ImageFiles(
            self.root, paths, labels, is_query=part == "query", is_gallery=part == "gallery", transforms=self.transforms
        )
        check_files(data, SOURCE)
        train, test = data.select(part == "train"), data.select(part != "train")
        train.is_query = train.is_gallery = None  # validation images are both query and gallery
        check_counts(file, train, 25_882, 3_997)
        check_counts(file, test, 14_218 + 12_612, 3_985)
        return {"train": train, "test": test}
