import numpy as np

from lightning_recall.adaptation.data.textures import CHUNK, blend, draw_textures


def test_blending_is_the_absolute_difference():
    rng = np.random.default_rng(0)
    digits = rng.integers(256, size=(2, 4, 5), dtype=np.uint8)
    patches = rng.integers(256, size=(2, 3, 4, 5), dtype=np.uint8)
    blended = blend(digits, patches)
    assert blended.dtype == np.uint8
    for n, channel, row, column in np.ndindex(*patches.shape):
        expected = abs(int(patches[n, channel, row, column]) - int(digits[n, row, column]))
        assert blended[n, channel, row, column] == expected


def test_textures_differ_and_are_reproducible():
    def draw(seed=0, **kwargs):
        return draw_textures(6, 16, np.random.default_rng(seed), **kwargs)

    textures = draw()
    assert textures.shape == (6, 3, 16, 16)
    assert textures.dtype == np.uint8
    assert (textures == draw()).all()
    assert (textures != draw(1)).any()
    assert len(np.unique(textures.mean((2, 3)).round(), axis=0)) == 6
    assert textures.std((2, 3)).min() > 1
    plain = draw(contrast=0.0)
    assert (plain == plain[:, :, :1, :1]).all()  # one colour each
    assert (np.ptp(plain[:, :, 0, 0].astype(int), axis=1) > 0).all()  # not grey
    assert np.abs(draw(brightness=0.25) - textures / 4).max() <= 1


def test_any_number_of_textures():
    rng = np.random.default_rng(0)
    assert len(draw_textures(0, 4, rng)) == 0
    assert len(draw_textures(CHUNK + 3, 4, rng)) == CHUNK + 3
