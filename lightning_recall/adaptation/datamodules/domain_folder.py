"""Your own images of two domains in folders."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.adaptation.batches import NO_LABEL
from lightning_recall.adaptation.data.domain_files import LAYOUTS, Listing, find_domain
from lightning_recall.adaptation.data.images import DomainFiles
from lightning_recall.adaptation.data.transforms import PhotoTransforms
from lightning_recall.adaptation.datamodules.base import AdaptationDataModule
from lightning_recall.adaptation.datamodules.domain_checks import check_same_classes, listed
from lightning_recall.adaptation.datamodules.splits import check_fraction, hold_out
from lightning_recall.data.messages import pluralize, quote, shorten
from lightning_recall.data.tables import check_files, require_path, user_path

TRANSFORMS = PhotoTransforms()
FILES = "Check that the archive is unpacked completely, and that listed paths are relative to root."


class DomainFolderDataModule(AdaptationDataModule):
    """Data module for a folder that holds two domains: Office-31, Office-Home, VisDA-2017 or your own.

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
        classes: uses only images of these classes, in this order. The source must have them all; the target may lack
            some (partial domain adaptation), which gives a warning. None: all classes, which must be the same in both
            domains.
        test_fraction: fraction of the target's images held out for the test, at least 0 and below 1; ignored if the
            target has a test split. 0: all images are for training and test.
        kwargs: passed to `AdaptationDataModule`.

    Raises:
        ValueError: if root or a domain is missing or empty, or both are the same; at setup, if the domains have
            different classes, or an image is missing or broken. A warning says if both domains list the same files.
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
        if (self.root / source).resolve() == (self.root / target).resolve():
            raise ValueError(
                f"source {quote(source)} and target {quote(target)} are the same folder: pass two domains."
            )
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
        """Raises ValueError if a domain lacks a class or has another one; see `classes`. Warns of shared images."""
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
                if self.classes:
                    names &= {*self.class_names}
                    names |= self.lacking_classes(domain) if names else set()
                try:
                    check_same_classes(sorted(self.class_names), {quote(domain): sorted(names)})
                except ValueError as error:
                    shared = [name for name in known if name in listing.names]
                    raise ValueError(f"{shorten(self.root)}: {error} {advice(domain, shared)}") from None
        warn_of_shared_images(self.listings[self.source], self.listings[self.target])

    def lacking_classes(self, domain: str) -> set[str]:
        """The chosen classes without a training image in the target, with a warning; none for the source."""
        if domain == self.source:
            return set()
        found = self.listings[domain]["train"].names
        lacking = [name for name in self.class_names if name not in found]
        if lacking and found:
            rank_zero_warn(f"The target {quote(domain)} has no training image of {listed(lacking)}.")
        return set(lacking)

    def files_of(self, listing: Listing) -> DomainFiles:
        """The data set of a split, with the images of the chosen classes."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        kept = [index for index, name in enumerate(listing.classes) if name is None or name in numbers]
        paths = [listing.paths[index] for index in kept]
        labels = [numbers.get(str(listing.classes[index]), NO_LABEL) for index in kept]
        data = DomainFiles(self.root, paths, labels, self.class_names, self.transforms)
        check_files(data, FILES)
        return data


def advice(domain: str, shared: Sequence[str]) -> str:
    """What to do about different classes.

    Args:
        domain: name of a domain.
        shared: classes that both domains have.
    """
    if shared:
        return (
            f"Both domains have {listed(shared)}: pass these as classes, or all classes of the source if the target "
            "lacks some of them."
        )
    return f"If the images in {quote(domain)} have no labels, put them there without subfolders."


def warn_of_shared_images(source: Mapping[str, Listing], target: Mapping[str, Listing]) -> None:
    """Warns if files are in both domains, since the scores of the target are then those of known images."""
    first, second = ({path for listing in splits.values() for path in listing.paths} for splits in (source, target))
    shared = sorted(first & second)
    if shared:
        rank_zero_warn(
            f"{pluralize(len(shared), 'file is', 'files are')} in both domains, such as {shorten(shared[0])}: the "
            "scores of the target are those of labelled training images."
        )
