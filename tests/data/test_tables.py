import re

import numpy as np
import pytest
from PIL import Image

from lightning_recall.data import ImageFiles
from lightning_recall.data.tables import (
    check_counts,
    check_files,
    column_names,
    encode_labels,
    parse_integers,
    read_columns,
    require_path,
)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_columns_by_name(tmp_path, newline, bom):
    file = tmp_path / "list.txt"
    file.write_bytes((bom + newline.join(["id  path", "1 a.jpg  ", "", "2\tb.jpg", ""])).encode())
    assert read_columns(file, ("path", "id")) == [["a.jpg", "b.jpg"], ["1", "2"]]


def test_quoted_cells_and_no_header(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text('7,"a, b.jpg"\n8,c.jpg\n')
    assert read_columns(file, ("id", "path"), ",", header=False) == [["7", "8"], ["a, b.jpg", "c.jpg"]]
    file.write_text("3\nid path\n1 a.jpg\n")
    assert read_columns(file, ("path",), skip=1) == [["a.jpg"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id file\n1 a.jpg\n", "has no column 'path': its first line names 'id, file'"),
        ("id path\n1 a.jpg\n2\n", "line 3: expected 2 cells, got 1: '2'"),
        ("id path\n", "has no data lines"),
        ("", "has no data lines"),
    ],
)
def test_errors_name_the_malformed_list(tmp_path, text, message):
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{file}") + ".*" + re.escape(message)):
        read_columns(file, ("id", "path"))


def test_a_missing_path_names_its_parent(tmp_path):
    with pytest.raises(ValueError, match=r"a/b.txt does not exist, but its parent folder .* does\. Unpack it\."):
        require_path(tmp_path / "a" / "b.txt", "Unpack it.")
    assert require_path(tmp_path, "") == tmp_path


def test_missing_files_are_counted(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    check_files(ImageFiles(tmp_path, ["0.png"], [0]), "")
    with pytest.raises(ValueError, match=r"3 of 4 checked files cannot be found, such as .*1.png. Unpack"):
        check_files(ImageFiles(tmp_path, [f"{i}.png" for i in range(4)], [0] * 4), "Unpack it.")


def test_counts_that_differ_from_the_published_ones_warn(tmp_path):
    data = ImageFiles(tmp_path, ["0.png", "1.png"], [7, 8])
    check_counts(tmp_path / "list.txt", data, 2, 2)
    with pytest.warns(UserWarning, match=r"list.txt lists 2 images of 2 classes, but .* has 3,000 images of 2 classes"):
        check_counts(tmp_path / "list.txt", data, 3000, 2)


def test_names_are_encoded_as_labels():
    first, second = encode_labels(["b", "a", "b"], ["c", "a"])
    assert (first.tolist(), second.tolist()) == ([1, 0, 1], [2, 0])
    assert first.dtype == np.int64


def test_only_integers_are_accepted(tmp_path):
    assert parse_integers(tmp_path, "class", ["7", "-1"]).tolist() == [7, -1]
    for wrong in ("seven", "--7", "7.0", "²", "", "9" * 19):
        with pytest.raises(ValueError, match=f"list.txt: class must be an integer of .*, got {wrong!r}"):
            parse_integers(tmp_path / "list.txt", "class", ["7", wrong])


@pytest.mark.parametrize("text", ["path,label\na.jpg,Müller\n", "path,Größe\na.jpg,1\n"])
def test_the_error_for_text_that_is_not_utf8_names_the_file(tmp_path, text):
    file = tmp_path / "list.csv"
    file.write_text(text, encoding="latin-1")
    for read in (lambda: read_columns(file, ("path",), ","), lambda: column_names(file, ",")):
        with pytest.raises(ValueError, match=r"list\.csv is not UTF-8 text \(.*\): save it as UTF-8"):
            read()


@pytest.mark.parametrize("lines", [3_000, 20_000])
def test_the_error_for_an_unclosed_quote_names_its_line(lines, tmp_path):
    file = tmp_path / "list.csv"
    text = ["path,label", *(f"{i}.jpg,class {i % 7}" for i in range(lines))]
    text[4] = '"3.jpg,class 3'
    file.write_text("\n".join(text))
    with pytest.raises(ValueError, match=r"list\.csv, line 5: a quoted cell is not closed on the same line") as raised:
        read_columns(file, ("path", "label"), ",")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.jpg,1\n\n,2\n", "line 4: the path is empty."),
        ("path,label\na.jpg, \n", "line 2: the label is empty."),
        ("path,label,path\na.jpg,1,b.jpg\n", "has several columns 'path': its first line names 'path, label, path'."),
        ("path,label,Path\na.jpg,1,b.jpg\n", "has several columns 'path'"),
        ("path;label\na.jpg;1\n", "The file seems to use semicolons: save it with commas."),
        ("path\tlabel\na.jpg\t1\n", "The file seems to use tabs: save it with commas."),
        ("path,label\na, b.jpg,1\n", "line 2: expected 2 cells, got 3: 'a b.jpg 1'."),
        ("path,label\na.jpg,1\0\n", "line 2: the line has NUL characters. Save the file as UTF-8 text."),
        ('path,label\n"a.jpg"x,1\n', "line 2: a quoted cell"),
        ('path,label\na.jpg,dog\nb.jpg,dog"\n', "line 3: unbalanced quote (\") in the cell 'dog\"'."),
        ('path,label\na.jpg",dog"\n', "line 2: unbalanced quote (\") in the cell 'a.jpg\"'"),
        ('path,label\na.jpg,5" lens\n', "line 2: unbalanced quote (\") in the cell '5\" lens'"),
        (f'path,label\na.jpg,{"x" * 9_999}"\n', "line 2: unbalanced quote (\") in the cell 'xxx"),
        (f"path,label\n{'x' * 50_000},1\n", "has 50,000 characters. File systems allow at most 4,096 bytes"),
        (f"path,label\na.jpg,1\na/{'ü' * 130}.jpg,1\n", "line 3: the path 'a/ü"),
        (f"path,label\n{'a/' * 2_100}a.jpg,1\n", "line 2: the path 'a/a"),
        (f"{'x' * 9_999},label\na.jpg,1\n", "has no column 'path'"),
        (f"path,label\n{'x' * 9_999}\n", "line 2: expected 2 cells, got 1: 'xxx"),
        (f"path,label\na.jpg,{'1,' * 9_999}\n", "line 2: expected 2 cells, got 10,001: 'a.jpg 1"),
    ],
)
def test_errors_of_malformed_tables_are_short(text, message, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_columns(file, ("path", "label"), ",")
    assert str(raised.value).startswith(str(file))
    assert len(str(raised.value)) < 500


def test_line_numbers_include_the_lines_before_the_header(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("3\nid path\n1 a.jpg\n2\n")
    with pytest.raises(ValueError, match="line 4: expected 2 cells, got 1"):
        read_columns(file, ("path",), skip=1)


def test_files_of_spreadsheets_are_read(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text('PATH, Label \r"a ""b"".jpg",  1 ,,\r c.jpg ,2\r', newline="")  # line ends of old Macintoshes
    assert read_columns(file, ("path", "label"), ",") == [['a "b".jpg', "c.jpg"], ["1", "2"]]
    assert column_names(file, ",") == ["path", "label"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf16_is_rejected(encoding, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("path,label\na.jpg,1\n", encoding=encoding)
    for read in (lambda: read_columns(file, ("path",), ","), lambda: column_names(file, ",")):
        with pytest.raises(ValueError, match=r"list\.csv.* (is not UTF-8 text|the line has NUL characters)"):
            read()


def test_quotes_that_belong_to_a_cell_are_kept(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text('path,label\na.jpg,"5"" lens"\nb.jpg, "dog"\n"c.jpg" ,a "b" c\n'.replace('" ,', '",'))
    assert read_columns(file, ("path", "label"), ",") == [["a.jpg", "b.jpg", "c.jpg"], ['5" lens', "dog", 'a "b" c']]


@pytest.mark.parametrize("name", ["y" * 255, "ü" * 127, "y" * 200 + "/" + "y" * 200])
def test_names_of_the_maximum_length_are_read(name, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(f"path,label\n{name},{'x' * 300}\n")
    assert read_columns(file, ("path", "label"), ",") == [[name], ["x" * 300]]


def test_messages_about_a_single_file_use_the_singular(tmp_path):
    with pytest.raises(ValueError, match=r"^1 of 1 checked file cannot be found, such as .*0\.png"):
        check_files(ImageFiles(tmp_path, ["0.png"], [0]), "")
    (tmp_path / "1.png").mkdir()
    with pytest.raises(ValueError, match=r"^1 of 1 checked file cannot be found: .*1\.png is a folder\."):
        check_files(ImageFiles(tmp_path, ["1.png"], [0]), "")
    with pytest.warns(UserWarning, match=r"lists 1 image of 1 class, but"):
        check_counts(tmp_path, ImageFiles(tmp_path, ["0.png"], [0]), 2, 2)
