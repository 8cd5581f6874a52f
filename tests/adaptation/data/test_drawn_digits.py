import numpy as np
import pytest

from lightning_recall.adaptation.data import drawn_digits
from lightning_recall.adaptation.data.drawn_digits import draw_digits, draw_typefaces

SERIF, SANS = "DejaVuSerif", "DejaVuSans-Bold"


def test_digits_are_white_on_black_and_inside_the_image():
    drawn = draw_typefaces([SERIF, SANS], 64)
    assert drawn.shape == (2, 10, 64, 64)
    assert (drawn.max((2, 3)) == 255).all()
    edge = np.concatenate([drawn[..., :4, :].ravel(), drawn[..., -4:, :].ravel(), drawn[..., :4].ravel()])
    assert not edge.any()
    flat = drawn.reshape(20, -1)
    assert len(np.unique(flat, axis=0)) == 20
    for image in drawn.reshape(20, 64, 64):
        for inside in (np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))):
            assert (inside[0] + inside[-1]) / 2 == pytest.approx(31.5, abs=2.1)


@pytest.mark.parametrize("size", [28, 32])
def test_without_transform_a_digit_is_the_average_of_four_pixels(monkeypatch, size):
    identity = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
    monkeypatch.setattr(drawn_digits, "random_transforms", lambda count, rng: np.stack([identity] * count))  # noqa: ARG005  # the arguments of the real one
    labels = np.array([3, 0, 9])
    drawn = draw_typefaces([SERIF], 2 * size)[0, labels].astype(float)
    expected = drawn.reshape(3, size, 2, size, 2).mean((2, 4))
    assert np.abs(draw_digits([SERIF], labels, size, np.random.default_rng(0)) - expected).max() <= 0.51


def test_draws_are_reproducible_and_vary():
    labels = np.full(8, 4)

    def draw(seed):
        return draw_digits([SERIF, SANS], labels, 32, np.random.default_rng(seed))

    images = draw(0)
    assert images.shape == (8, 32, 32)
    assert images.dtype == np.uint8
    assert (images == draw(0)).all()
    assert (images != draw(1)).any()
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8


def test_many_images_are_drawn_in_parts(monkeypatch):
    labels = np.arange(7)
    whole = draw_digits([SANS], labels, 16, np.random.default_rng(0))
    monkeypatch.setattr(drawn_digits, "CHUNK", 3)
    assert (draw_digits([SANS], labels, 16, np.random.default_rng(0)) == whole).all()
