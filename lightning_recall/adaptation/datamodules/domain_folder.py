"""Your own images of two domains in folders."""

from collections.abc import Sequence
from typing import Any

from lightning_recall.adaptation.batches import NO_LABEL
from lightning_recall.adaptation.data.domain_files import LAYOUTS, Listing, find_domain
from lightning_recall.adaptation.data.images import DomainFiles
from lightning_recall.adaptation.data.transforms import PhotoTransforms
from lightning_recall.adaptation.datamodules.base import AdaptationDataModule
from lightning_recall.adaptation.datamodules.domain_checks import check_same_classes, listed
from lightning_recall.adaptation.datamodules.splits import check_fraction, hold_out
from lightning_recall.data.messages import quote, shorten
from lightning_recall.data.tables import check_files, require_path, user_path

TRANSFORMS = PhotoTransforms()
FILES = "Check that the archive is unpacked completely, and that listed paths are relative to root."


class DomainFolderDataModule(AdaptationDataModule):
    """Data module for a folder that holds two domains, such as Office-31, Office-Home, VisDA-2017 or your own.

    A domain has one of these layouts:

    - root/DOMAIN/CLASS/*.jpg, as in Office-Home and VisDA-2017 (its domains are `train` and `validation`), or
      root/DOMAIN/images/CLASS/*.jpg, as in Office-31. Images may be in subfolders of their class.
    - root/DOMAIN/train/CLASS/*.jpg and the same for `val` and `test`, both optional.
    - root/DOMAIN/image_list.txt, as in VisDA-2017: a path and a label on each line.
    - root/DOMAIN.txt, or root/DOMAIN_train.txt and root/DOMAIN_test.txt, as in DomainNet. `source` and `target` may
      also be paths of such files, such as `image_list/amazon.txt`. Classes have the names of their folders.
    - Only for the target: root/DOMAIN/*.jpg, or lists without labels. The images have the label -1; then there are no
      accuracies of the target.

    All images of the source train, except for the fraction held out for validation (`val_fraction`). Unless the target
    has a test split, all its images are both the unlabelled training images and the test images: this is the protocol
    of the literature on these data sets ("transductive"). `test_fraction` holds out random images of the target
    instead. Labels of the target are used for scores only.

    Licences: Office-31 (Saenko et al., ECCV 2010), Office-Home (Venkateswara et al., CVPR 2017), VisDA-2017 (Peng et
    al., 2017) and DomainNet (Peng et al., ICCV 2019) are for research.

    Args:
        root: the folder of both domains; ~ is the home folder.
        source: the domain with labels.
        target: the domain whose labels, if there are any, are used for scores only.
        transforms: image loading and transforms.
        classes: uses only images of these classes, in this order; both domains must have them, the target also further
            ones. None: all classes, which must be the same in both domains.
        test_fraction: fraction of the target's images held out for the test, at least 0 and below 1; ignored if the
            target has a test split. 0: all images are for training and test.
        kwargs: passed to `AdaptationDataModule`.

    Raises:
        ValueError: if root or a domain is missing or empty, or both are the same; at setup, if the domains have
            different classes, or an image is missing or broken.
    """

    def __init__(
        self,
        root: str,
        source: str,
        target: str,
        transforms: PhotoTransforms | None = TRANSFORMS,
        classes: Sequence[str] | None = None,
        test_fraction: float = 0.0,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        check_fraction("test_fraction", test_fraction)
        if source == target:
            raise ValueError(f"source and target must differ, got {source!r} twice.")
        self.root = require_path(user_path(root), f"Pass a folder that holds both domains as root. Layouts: {LAYOUTS}.")
        if not self.root.is_dir():
            raise ValueError(f"{shorten(self.root)} is a file: pass a folder that holds both domains as root.")
        self.source, self.target = source, target
        self.transforms = transforms or TRANSFORMS
        self.image_size = self.transforms.evaluation_sizes[0]
        self.test_fraction = test_fraction
        self.listings = {name: find_domain(self.root, name) for name in (source, target)}
        self.classes = tuple(classes) if classes else None
        self.class_names = self.classes or tuple(self.listings[source]["train"].names)

    def read(self) -> dict[str, dict[str, DomainFiles]]:
        """Lists the images of both domains, and holds out test images of the target."""
        self.check_classes()
        source, target = (
            {split: self.files_of(listing) for split, listing in self.listings[name].items()}
            for name in (self.source, self.target)
        )
        if "test" not in target and self.test_fraction:
            target["train"], target["test"] = hold_out(
                target["train"], self.test_fraction, self.seed, stratified=False, name="test_fraction"
            )
        target.setdefault("test", target["train"])
        return {"source": source, "target": target}

    def check_classes(self) -> None:
        """Raises ValueError if a domain lacks a class or, unless `classes` are chosen, has another one."""
        known = self.listings[self.source]["train"].names
        if not known:
            raise ValueError(
                f"The source {quote(self.source)} has no classes: its images need one folder per class, or labels in a "
                "list."
            )
        for domain, splits in self.listings.items():
            for split, listing in splits.items():
                if not listing.names:  # the target may lack labels
                    continue
                names = {*listing.names, *(() if split == "train" else self.class_names)}  # a test may lack a class
                names = names & {*self.class_names} if self.classes else names
                try:
                    check_same_classes(sorted(self.class_names), {quote(domain): sorted(names)})
                except ValueError as error:
                    shared = [name for name in known if name in listing.names]
                    advice = f" Both domains have {listed(shared)}: pass these as classes." if shared else ""
                    raise ValueError(f"{shorten(self.root)}: {error}{advice}") from None

    def files_of(self, listing: Listing) -> DomainFiles:
        """The data set of a split, with the images of the chosen classes."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        kept = [index for index, name in enumerate(listing.classes) if name is None or name in numbers]
        paths = [listing.paths[index] for index in kept]
        labels = [numbers.get(str(listing.classes[index]), NO_LABEL) for index in kept]
        data = DomainFiles(self.root, paths, labels, self.class_names, self.transforms)
        check_files(data, FILES)
        return data
