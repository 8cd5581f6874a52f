"""Thumbnails of image files, for a page that loads nothing."""

import base64
import io
import os
from pathlib import Path

from PIL import Image, ImageOps

SIDE = 144  # pixels, longer side
QUALITY = 80  # of JPEG


def thumbnail(folder: Path, path: str) -> str:
    """The image at a path inside a folder as a data URL; "" if there is none.

    A path that leads out of the folder is not read: paths come with the embeddings, perhaps from somebody else, and
    pages are shared.
    """
    root = os.path.abspath(folder)
    file = os.path.abspath(os.path.join(root, path))
    if os.path.commonpath([root, file]) != root:
        return ""
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # of a large JPEG file, decodes fewer pixels
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for broken files
        return ""
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
