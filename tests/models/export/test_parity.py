import numpy as np
import pytest
import torch
from torch import nn

from lightning_recall.models.export.parity import between_images, check_parity, write_and_compare
from lightning_recall.models.export.prepare import example_images


class Means(nn.Module):
    """Unit embeddings (B, 3): the mean of each channel."""

    def forward(self, images):
        return nn.functional.normalize(images.float().mean((2, 3)), dim=1)


IMAGES = example_images(8, 3)


def test_cosines_are_those_of_numpy():
    def shifted(images):
        return Means()(images) + 0.002 * len(images) * torch.tensor([1.0, -1.0, 0.5])

    expected = Means()(IMAGES)
    found = check_parity(shifted, IMAGES, expected, "float16")
    unit = expected.double().numpy()
    for cosine, size in zip(found, (1, 7), strict=True):
        other = unit + 0.002 * size * np.array([1.0, -1.0, 0.5])
        assert cosine == pytest.approx(((unit * other).sum(1) / np.linalg.norm(other, axis=1)).min(), abs=1e-7)
    assert between_images(expected) == pytest.approx((unit @ unit.T).min(), abs=1e-7)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize(("precision", "offset"), [("float32", 0.03), ("float16", 0.1)])
def test_other_embeddings_raise_and_leave_no_file(precision, offset, size, tmp_path):
    def broken(images):
        return Means()(images) + torch.tensor([offset, 0.0, 0.0]) * (len(images) == size)

    def write(file):
        file.write_text("exported")

    message = rf"at batches of {size} the smallest cosine is 0\.99\d+, below 0\.999.* for {precision}"
    with pytest.raises(RuntimeError, match=message):
        write_and_compare(Means(), tmp_path / "x.onnx", IMAGES, precision == "float16", write, lambda _: broken)
    assert list(tmp_path.iterdir()) == []
    report = write_and_compare(Means(), tmp_path / "x.onnx", IMAGES, False, write, lambda _: Means())
    assert (report.path.read_text(), report.num_bytes) == ("exported", 8)


def test_a_value_that_is_not_a_number_raises():
    with pytest.raises(RuntimeError, match="smallest cosine is nan"):
        check_parity(lambda images: Means()(images) * torch.nan, IMAGES, Means()(IMAGES), "float32")
