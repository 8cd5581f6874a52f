import pytest

from lightning_recall.plots.labels import fit_lines, shorten_name, text_width

NAMES = ["Jay", "Blue_Jay", "American_Three_toed_Woodpecker", "Aston Martin Virage Convertible 2012 Ed.", "W" * 40]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "size"), [(0.85, 6.5), (1.45, 8), (0.3, 8)])
def test_a_name_never_is_wider_than_its_image(name, width, size):
    lines = fit_lines(name, width, size).split("\n")
    assert len(lines) <= 2
    assert all(text_width(line, size) <= width for line in lines)
    assert lines[0][0] == name[0]
    assert lines[-1][-1] == name[-1]


def test_names_that_fit_are_unchanged_and_lines_break_between_words():
    assert fit_lines("Blue_Jay", 0.85, 6.5) == "Blue_Jay"
    assert fit_lines("Cape_Glossy_Starling", 0.85, 6.5) == "Cape_Glossy_\nStarling"
    assert fit_lines("Red Fox of northern Norway", 0.85, 6.5) == "Red Fox of\nnorthern Norway"


def test_long_names_lose_their_middle():
    name = "".join(chr(65 + i % 26) for i in range(100))
    short = shorten_name(name)
    assert len(short) == 40
    assert short == f"{name[:20]}…{name[-19:]}"
    assert shorten_name(name[:40]) == name[:40]
