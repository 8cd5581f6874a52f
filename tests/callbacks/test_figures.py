import pytest

from lightning_recall.callbacks.figures import axes_in_inches, shorten


@pytest.mark.parametrize("length", range(3, 12))
def test_long_names_lose_their_middle(length):
    name = "abcdefghij"
    short = shorten(name, length)
    assert len(short) == min(length, len(name))
    if length < len(name):
        start, _, end = short.partition("…")
        assert name.startswith(start)
        assert name.endswith(end)
        assert 0 <= len(start) - len(end) <= 1
        assert end
    else:
        assert short == name


def test_axes_are_in_inches_from_the_upper_left_corner():
    axes = axes_in_inches(4, 3)
    assert axes.get_figure().get_size_inches().tolist() == [4, 3]
    display = axes.transData.transform([(1, 2), (0, 0)])
    dpi = axes.get_figure().dpi
    assert display[0].tolist() == pytest.approx([dpi, dpi])
    assert display[1].tolist() == pytest.approx([0, 3 * dpi])
