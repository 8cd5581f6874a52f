import numpy as np
import pytest

from lightning_recall.segmentation.data.classes import mask_classes, values_of
from lightning_recall.segmentation.data.masks import color_code, read_colors, read_ids


def test_names_are_numbered_in_order(tmp_path):
    assert values_of(["a", "b"], tmp_path) == {"a": 0, "b": 1}
    (tmp_path / "classes.txt").write_text("sky line\n\nroad\n")
    assert values_of(None, tmp_path) == {"sky line": 0, "road": 1}
    assert values_of("classes.txt", tmp_path) == values_of(str(tmp_path / "classes.txt"), tmp_path)


def test_tables(tmp_path):
    (tmp_path / "classes.csv").write_text("name, r, g, b\nsky,1,2,3\nroad,255,0,4\n")
    assert values_of(None, tmp_path) == {"sky": (1, 2, 3), "road": (255, 0, 4)}
    (tmp_path / "ids.csv").write_text("name,id\nsky,23\nroad,7\n")
    assert values_of("ids.csv", tmp_path) == {"sky": 23, "road": 7}


def test_ids():
    classes = mask_classes({"sky": 23, "void": 0, "road": 7}, ignored=["void", 3])
    assert classes.names == ("sky", "road")
    assert classes.colors is None
    assert classes.mask_format.class_of == {23: 0, 7: 1, 0: 255, 3: 255, 255: 255}
    assert classes.mask_format.read is read_ids
    assert mask_classes({"a": 255}).mask_format.class_of == {255: 0}


def test_colors():
    classes = mask_classes({"sky": [1, 2, 3], "road": (9, 8, 7)}, ignored=[(0, 0, 0)])
    assert np.array_equal(classes.colors, [(1, 2, 3), (9, 8, 7)])
    codes = [color_code(color) for color in ((1, 2, 3), (9, 8, 7), (0, 0, 0))]
    assert classes.mask_format.class_of == dict(zip(codes, (0, 1, 255), strict=True))
    assert classes.mask_format.read is read_colors


@pytest.mark.parametrize(
    ("values", "ignored", "message"),
    [
        ({"a": 0, "b": 0}, (), "classes give 0 to 'a' and 'b'"),
        ({"a": 0, "b": (1, 2, 3)}, (), "either ids or colours, got both"),
        ({"a": (0, 0, 256)}, (), r"'a' must have an id .* got \(0, 0, 256\)"),
        ({"a": -1}, (), "got -1"),
        ({"a": "x"}, (), "got 'x'"),
        ({"a": 0}, ["b"], "ignored has 'b', which is no class: 'a'"),
        ({"a": 0}, [0], "ignored has 0, which is the class 'a'"),
        ({"a": 0}, [(1, 2, 3)], r"ignored must hold ids as classes do, got \(1, 2, 3\)"),
        ({"a": 0}, ["a"], "1 to 255 classes that are not ignored, got 0"),
        ({str(i): i for i in range(256)}, (), "1 to 255 classes that are not ignored, got 256"),
    ],
)
def test_invalid_classes(values, ignored, message):
    with pytest.raises(ValueError, match=message):
        mask_classes(values, ignored)


def test_invalid_files(tmp_path):
    with pytest.raises(ValueError, match=r"has no classes.csv or .*: add one, or pass classes: a list of names"):
        values_of(None, tmp_path)
    with pytest.raises(ValueError, match=r"none.csv does not exist: classes must be"):
        values_of("none.csv", tmp_path)
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match=r"twice.txt: 'a' occurs 2 times"):
        values_of("twice.txt", tmp_path)
    (tmp_path / "text.csv").write_text("name,r,g,b\na,1,2,red\n")
    with pytest.raises(ValueError, match=r"text.csv: r, g, b must be an integer .* got 'red'"):
        values_of("text.csv", tmp_path)
    (tmp_path / "columns.csv").write_text("class,value\na,1\n")
    with pytest.raises(ValueError, match=r"columns.csv has no column 'name'"):
        values_of("columns.csv", tmp_path)
    with pytest.raises(ValueError, match="classes must be a list of names"):
        values_of(3, tmp_path)
