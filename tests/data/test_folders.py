import pytest

from lightning_recall.data.folders import image_suffixes, is_hidden, split_of


def test_suffixes_are_of_formats_that_pillow_decodes_alone():
    assert {".jpg", ".png", ".tif", ".webp", ".mpo"} <= image_suffixes()
    assert not {".eps", ".h5", ".txt", ".mat"} & image_suffixes()


@pytest.mark.parametrize(("name", "hidden"), [(".git", True), ("Thumbs.db", True), ("__MACOSX", True), ("a.b", False)])
def test_hidden_and_system_files(name, hidden):
    assert is_hidden(name) == hidden


@pytest.mark.parametrize(("name", "split"), [("Validation", "val"), ("training", "train"), ("x", None)])
def test_split_of_a_folder_name(name, split):
    assert split_of(name) == split
