"""iNaturalist 2018, with the retrieval splits of Smooth-AP."""

from typing import Any

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, check_files, encode_labels, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Download train_val2018.tar.gz (https://github.com/visipedia/inat_comp/tree/master/2018) and "
    "Inat_dataset_splits.zip (Google Drive, linked from the README of https://github.com/Andrew-Brown1/Smooth_AP), and "
    "unpack both in root."
)


class INaturalist2018DataModule(RetrievalDataModule):
    """iNaturalist 2018: 461,939 images of 8,142 species, long-tailed; retrieves images of the same species.

    Train: 325,846 images of 5,690 species. Test: 136,093 images of 2,452 other species, as in the lists of Smooth-AP,
    `Inaturalist_train_set1.txt` and `Inaturalist_test_set1.txt`; every test image is a query against all others.
    Metrics: Recall@1, 4, 16, 32. `val_classes` of the training species are held out for validation. The
    super-categories, such as "Aves", are passed to the sampler as super-classes. Some species have fewer than 4 images:
    with `samples_per_class=4`, use `small_classes="drop"`.

    Source: Van Horn et al., "The iNaturalist Species Classification and Detection Dataset", CVPR 2018; splits: Brown,
    Xie, Kalogeiton, Zisserman, "Smooth-AP", ECCV 2020. Licence: non-commercial research.

    Args:
        root: folder that holds `train_val2018` and the split files; the split files may be in its subfolder
            `Inat_dataset_splits`.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if a list or an image is missing, or a list is malformed.
    """

    def __init__(
        self, root: str = "data/inaturalist2018", transforms: ImageTransforms | None = ImageTransforms(), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Reads both lists.

        The folder names of an image give its super-category and species: `train_val2018/SUPER-CATEGORY/SPECIES/`.
        """
        folder = self.root / "Inat_dataset_splits"
        folder = folder if folder.exists() else self.root
        files = [require_path(folder / f"Inaturalist_{split}_set1.txt", SOURCE) for split in ("train", "test")]
        parts = [[path.lstrip("/") for path in read_columns(file, ("path",), header=False)[0]] for file in files]
        for file, paths in zip(files, parts, strict=True):
            wrong = next((path for path in paths if path.count("/") < 2), None)
            if wrong:
                raise ValueError(f"{file} must list train_val2018/SUPER-CATEGORY/SPECIES/IMAGE.jpg, got {wrong!r}.")
        labels = encode_labels(*([path.split("/")[-2] for path in paths] for paths in parts))
        supers = encode_labels(*([path.split("/")[-3] for path in paths] for paths in parts))
        train, test = (
            ImageFiles(self.root, *columns, transforms=self.transforms)
            for columns in zip(parts, labels, supers, strict=True)
        )
        check_counts(files[0], train, 325_846, 5_690)
        check_counts(files[1], test, 136_093, 2_452)
        for data in (train, test):
            check_files(data, SOURCE)
        return {"train": train, "test": test}
