"""What counts as an image file in a folder of the user, and which folder names are splits."""

from functools import cache

from PIL import Image

NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""formats that Pillow opens, but decodes only with other programs"""
SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini"}
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "query": ("query", "queries"),
    "gallery": ("gallery",),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
"""lower-case name -> split"""


def split_of(name: str) -> str | None:
    """Split that a folder name or CSV cell denotes (case-insensitive): a key of `SPLIT_NAMES`; None for other names.

    >>> split_of("Valid"), split_of("birds")
    ('val', None)
    """
    return SPLIT_OF.get(name.lower())


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the formats that Pillow decodes without other programs."""
    extensions = Image.registered_extensions().items()  # loads Pillow's plugins
    known = {suffix for suffix, name in extensions if name in Image.OPEN and name not in NOT_DECODED}
    return frozenset(known | {".mpo"})  # JPEG files with several images


def is_hidden(name: str) -> bool:
    """Whether a name is hidden or belongs to the operating system, an editor or version control."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES
