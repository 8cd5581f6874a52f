import pytest

from lightning_recall.data.folders import image_suffixes, is_hidden, list_images, split_of, warn_about_skipped


def test_suffixes_are_of_formats_that_pillow_decodes_alone():
    assert {".jpg", ".png", ".tif", ".webp", ".mpo"} <= image_suffixes()
    assert not {".eps", ".h5", ".txt", ".mat"} & image_suffixes()


@pytest.mark.parametrize(("name", "hidden"), [(".git", True), ("Thumbs.db", True), ("__MACOSX", True), ("a.b", False)])
def test_hidden_and_system_files(name, hidden):
    assert is_hidden(name) == hidden


@pytest.mark.parametrize(("name", "split"), [("Validation", "val"), ("training", "train"), ("x", None)])
def test_split_of_a_folder_name(name, split):
    assert split_of(name) == split


def test_images_of_class_folders(tmp_path):
    for name in ("b/2.png", "a/x/1.JPG", "a/notes.txt", "a/.hidden.png", "loose.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    skipped = []
    assert list_images(tmp_path, tmp_path, skipped) == (["a/x/1.JPG", "b/2.png"], ["a", "b"])
    assert skipped == [str(tmp_path / "loose.png"), str(tmp_path / "a" / "notes.txt")]
    with pytest.warns(UserWarning, match=r"2 files are ignored: .* Suffixes: .png, .txt\."):
        warn_about_skipped(tmp_path, skipped)
    warn_about_skipped(tmp_path, [])  # warnings are errors
