"""Makes MNIST-M: digits blended with random patches of photos, or of drawn textures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_recall.adaptation.data.textures import blend, draw_textures
from lightning_recall.data import read_image
from lightning_recall.data.folders import images_below
from lightning_recall.data.messages import shorten
from lightning_recall.data.tables import require_path, user_path

MAX_PHOTOS = 500  # bounds the memory: at most 400 MB
LONGEST_SIDE = 512  # pixels; larger photos are downscaled, so that a patch shows more than one surface


def make_mnist_m(digits: NDArray[np.uint8], photos: str | Path | None, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blends each digit with a patch of the same size by the absolute difference, see `blend`.

    The published MNIST-M takes its patches from the photos of BSDS500.

    Args:
        digits: (N, H, W) uint8, light on black.
        photos: folder of colour photos, also in subfolders, at least as large as a digit: patches are random crops of
            random photos. None: patches are drawn textures, so the images are not the published ones.
        rng: draws photos, crops and textures.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        ValueError: if the folder is missing or holds no photo, or a photo is broken or smaller than a digit.
    """
    size = digits.shape[-1]
    if photos is None:
        return blend(digits, draw_textures(len(digits), size, rng))
    read = read_photos(user_path(photos), size, rng)
    patches = np.empty((len(digits), 3, size, size), dtype=np.uint8)
    for patch, number in zip(patches, rng.integers(len(read), size=len(digits)), strict=True):
        photo = read[number]
        top, left = (int(rng.integers(side - size + 1)) for side in photo.shape[1:])
        patch[:] = photo[:, top : top + size, left : left + size]
    return blend(digits, patches)


def list_photos(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders.

    Raises:
        ValueError: if the folder is missing or holds none.
    """
    require_path(folder, "photos is a folder of colour photos, such as the images of BSDS500.")
    files = [Path(file) for file in images_below(folder)]
    if not files:
        raise ValueError(f"photos={shorten(folder)} holds no image, such as a .jpg or .png.")
    return files


def read_photos(folder: Path, size: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Reads at most 500 photos (3, H, W), chosen at random."""
    files = list_photos(folder)
    photos = []
    for index in np.sort(rng.permutation(len(files))[:MAX_PHOTOS]):
        try:
            photo = read_image(files[index], longest_side=LONGEST_SIDE).numpy()
        except Exception as error:  # decoders may raise any exception
            raise ValueError(f"Cannot read the image {shorten(files[index])}: {shorten(error)}") from error
        if min(photo.shape[1:]) < size:
            raise ValueError(
                f"{shorten(files[index])} has {photo.shape[2]} x {photo.shape[1]} pixels, but a patch has {size} x "
                f"{size}: remove it from the photos."
            )
        photos.append(photo)
    return photos
