import json
import re

import pytest

from lightning_recall.indexes.manifest import Manifest, read_manifest, sha256_of

GIVEN = Manifest("faiss", "exact", 8, 5, "a", "b", 3, "w", "/photos", {"recall": 0.5}, {"similarity": 0.25})


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    GIVEN.write(tmp_path)
    assert read_manifest(tmp_path) == GIVEN
    assert (GIVEN.index_name, GIVEN.items_name) == ("index-3.faiss", "items-3.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["index.json"]


@pytest.mark.parametrize("missing", ["recall", "similarity_threshold", "weights"])
def test_what_is_not_known_may_be_missing(missing, tmp_path):
    GIVEN.write(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    del content[missing]
    (tmp_path / "index.json").write_text(json.dumps({**content, "of a later release": 1}))
    assert not getattr(read_manifest(tmp_path), missing)


@pytest.mark.parametrize(
    "changed",
    [{"generation": "../1"}, {"generation": True}, {"engine": 3}, {"dim": None}, {"recall": []}, {"format": "1"}],
)
def test_damaged_values(changed, tmp_path):
    GIVEN.write(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**content, **changed}))
    with pytest.raises(ValueError, match=r"index.json is damaged: build the index again"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
def test_damaged_files(text, tmp_path):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        read_manifest(tmp_path)


def test_other_folders(tmp_path):
    (tmp_path / "file").touch()
    for name, reason in (("", "has no index.json"), ("file", "is not a folder"), ("none", "does not exist")):
        with pytest.raises(ValueError, match=re.escape(f"is not an index, it {reason}: build one with")):
            read_manifest(tmp_path / name)
    (tmp_path / "index.json").write_text('{"format": 2, "anything": 1}')
    with pytest.raises(ValueError, match="was written by a newer lightning-recall: upgrade"):
        read_manifest(tmp_path)


def test_files_are_compared_with_their_hashes(tmp_path):
    (tmp_path / "index-1.faiss").write_bytes(b"index")
    (tmp_path / "items-1.csv").write_bytes(b"items")
    hashes = [sha256_of(tmp_path / name) for name in ("index-1.faiss", "items-1.csv")]
    manifest = Manifest("faiss", "exact", 8, 5, *hashes)
    manifest.check_files(tmp_path)
    for name in ("index-1.faiss", "items-1.csv"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"{name} is damaged: its hash is not that of index.json"):
            manifest.check_files(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"is damaged: it has no {name}"):
            manifest.check_files(tmp_path)
        (tmp_path / name).write_bytes(content)
