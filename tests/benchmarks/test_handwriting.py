import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_recall.benchmarks.handwriting import ARCHIVES, Handwriting

REAL = Path(__file__).parents[3] / "shared" / "data" / "omniglot"


def draw(folder):
    """The archives' format: folder/ALPHABET/characterNN/*.png, 105 x 105, one bit; Greek is in both."""
    rng = np.random.default_rng(0)
    for archive, alphabets in zip(ARCHIVES, (("Korean", "Greek"), ("Greek", "Sanskrit")), strict=True):
        with zipfile.ZipFile(folder / archive, "w") as files:
            for alphabet in alphabets:
                for character in (1, 2):
                    for number in range(4):
                        buffer = BytesIO()
                        Image.fromarray(rng.random((105, 105)) > 0.1).save(buffer, "PNG")
                        name = f"{archive.removesuffix('.zip')}/{alphabet}/character0{character}/{number}.png"
                        files.writestr(name, buffer.getvalue())


def test_splits_share_no_alphabet(tmp_path):
    draw(tmp_path)
    data = Handwriting(str(tmp_path)).read()
    assert data["train"].images.shape == (8, 1, 32, 32)  # Sanskrit
    assert data["val"].images.shape == (8, 1, 32, 32)  # Korean
    assert data["test"].images.shape == (8, 1, 32, 32)  # Greek
    assert len(np.unique(np.concatenate([part.labels for part in data.values()]))) == 6  # disjoint
    assert data["train"].images.float().mean() < 80  # strokes are white


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"small1.zip not found: download it"):
        Handwriting(str(tmp_path)).read()


@pytest.mark.skipif(not REAL.exists(), reason="needs the handwriting beside the project")
def test_the_real_archives():
    data = Handwriting(str(REAL)).read()
    assert [len(data[part]) for part in ("train", "val", "test")] == [1780, 800, 2260]
    assert [len(set(data[part].labels.tolist())) for part in ("train", "val", "test")] == [89, 40, 113]
