import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.indexes import Manifest, SearchIndex, build_index, open_index
from lightning_recall.indexes import folder as folder_module
from lightning_recall.indexes.folder import image_folder_of
from lightning_recall.indexes.manifest import read_manifest
from lightning_recall.search import EmbeddingBlocks, nearest

pytest.importorskip("faiss")  # an extra
pytest.importorskip("usearch")  # an extra

EMBEDDINGS = torch.randn(60, 8, generator=torch.Generator().manual_seed(3))
QUERIES = torch.randn(9, 8, generator=torch.Generator().manual_seed(4))


def photos(numbers, folder="/photos", weights="abc"):
    """The photographs of some numbers."""
    numbers = torch.as_tensor(numbers)
    paths, classes = [f"{n}.jpg" for n in numbers.tolist()], [f"class {n % 3}" for n in numbers.tolist()]
    known = {"model": {"weights": weights}, "image_folder": Path(folder)}
    return EmbeddingSet(Path("embeddings"), EMBEDDINGS[numbers], numbers, numbers % 3, paths, classes, **known)


def found(index, k=5):
    """Paths of the neighbours of each query."""
    return [[index.items[row].path for row in rows.tolist()] for rows in index.search(QUERIES, k)[1]]


def expected(numbers, k=5):
    numbers = torch.as_tensor(numbers)
    _, rows = nearest(EmbeddingBlocks(QUERIES), EmbeddingBlocks(EMBEDDINGS[numbers]), k)
    return [[f"{n}.jpg" for n in numbers[row].tolist()] for row in rows]


def content(path):
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("engine", ["faiss", "usearch"])
def test_an_exact_index_finds_the_nearest_items_also_after_adding(engine, tmp_path):
    path = tmp_path / "made" / "shop.index"
    built = build_index(photos(range(40)), path, engine=engine)
    assert found(built) == found(open_index(path)) == expected(range(40))
    assert built.manifest.kind == "exact"
    assert built.manifest.recall is None
    index = open_index(str(path))
    assert index.add(photos(range(30, 60))) == 20
    assert found(index) == found(open_index(path)) == expected(range(60))
    assert [item.label for item in open_index(path).items] == [n % 3 for n in range(60)]
    assert sorted(file.name for file in path.iterdir()) == [f"index-2.{engine}", "index.json", "items-2.csv"]
    assert not list(path.parent.glob("*unfinished*"))


def test_adding_the_same_items_changes_nothing(tmp_path):
    path = tmp_path / "shop.faiss"
    index = build_index(photos(range(20)), path)
    before = content(path)
    assert index.add(photos(range(20))) == 0
    assert open_index(path).add(photos([19, 3])) == 0
    assert content(path) == before


def test_embeddings_without_paths_are_known_by_their_ids(tmp_path):
    given = EmbeddingSet(Path("a.npz"), EMBEDDINGS, torch.arange(60))
    index = build_index(given._replace(embeddings=EMBEDDINGS[:30], ids=torch.arange(30)), tmp_path / "a.faiss")
    assert index.add(given) == 30
    assert open_index(tmp_path / "a.faiss").add(given) == 0
    assert [item.id for item in index.items] == list(range(60))
    before = content(tmp_path / "a.faiss")
    with pytest.raises(ValueError, match="another item with id 0"):
        index.add(given._replace(embeddings=EMBEDDINGS.flip(0)))
    assert content(tmp_path / "a.faiss") == before
    assert index.model_folder is index.threshold is None


def test_the_recall_of_an_approximate_index_is_kept(tmp_path):
    build_index(photos(range(60)), tmp_path / "shop.faiss", "hnsw")
    recall = open_index(tmp_path / "shop.faiss").manifest.recall
    assert recall == {"recall": 1.0, "k": 10, "num_queries": 60, "num_items": 60}


def test_model_and_threshold_travel_with_the_index(tmp_path):
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    given = photos(range(9))._replace(model_folder=tmp_path / "model")
    threshold = {"similarity": 0.5, "false_accept_rate": 1e-3}
    build_index(given, tmp_path / "a.faiss", similarity_threshold=threshold)
    build_index(given, tmp_path / "b.faiss", model_folder=tmp_path / "other")
    index = open_index(tmp_path / "a.faiss")
    assert index.threshold == 0.5
    assert index.manifest.similarity_threshold == threshold
    assert index.manifest.weights == "abc"
    assert (index.model_folder / "config.json").read_text() == "model"
    assert (tmp_path / "b.faiss" / "model" / "config.json").read_text() == "other"
    index.manifest = replace(index.manifest, similarity_threshold={"similarity": None})
    with pytest.raises(ValueError, match="is damaged: its threshold is None"):
        _ = index.threshold


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "write_items", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_index(photos(range(9)), tmp_path / "shop.faiss")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["write_items", "sha256_of", "remove_old_files"])
def test_an_interrupted_add_leaves_a_usable_index(stage, tmp_path, monkeypatch):
    """Also if the process is killed, so that it cannot clean up."""
    path = tmp_path / "shop.faiss"
    index = build_index(photos(range(20)), path)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, stage, interrupt)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            index.add(photos(range(60)))
    number = 60 if stage == "remove_old_files" else 20  # index.json is written before old files are removed
    assert found(open_index(path)) == expected(range(number))
    if number == 20:
        with pytest.raises(ValueError, match="has changed since it was opened: open it again"):
            index.add(photos(range(60)))
    again = open_index(path)
    again.add(photos(range(40)))
    assert len(again) == max(number, 40)
    assert found(open_index(path)) == expected(range(len(again)))
    again.add(photos(range(60)))
    assert len(list(path.iterdir())) == (5 if number == 60 else 3)  # nothing was left to add


def test_two_processes_do_not_add_at_once(tmp_path):
    path = tmp_path / "shop.faiss"
    index = build_index(photos(range(20)), path)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="Another process is adding to"):
        index.add(photos(range(60)))
    os.close(descriptor)
    open_index(path).add(photos(range(40)))
    with pytest.raises(ValueError, match="has changed since it was opened: open it again"):
        index.add(photos(range(60)))
    assert len(open_index(path)) == 40


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "shop.faiss").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("shop.faiss", "link"):
        with pytest.raises(ValueError, match=f"{name} exists: choose another name, or add to the index"):
            build_index(photos(range(5)), tmp_path / name)
    assert (tmp_path / "shop.faiss").read_bytes() == b""


def test_another_model_or_dimension(tmp_path):
    path = tmp_path / "shop.faiss"
    index = build_index(photos(range(20)), path)
    before = content(path)
    with pytest.raises(ValueError, match="The index belongs to another model than embeddings: their weights differ"):
        index.add(photos(range(60), weights="other"))
    with pytest.raises(ValueError, match="embeddings have dimension 7, but those of the index have dimension 8"):
        index.add(photos(range(60))._replace(embeddings=EMBEDDINGS[:, 1:]))
    assert content(path) == before
    assert index.add(photos(range(21))._replace(model={})) == 1  # not known: no error


def test_damage_is_found(tmp_path):
    path = tmp_path / "shop.faiss"
    index = build_index(photos(range(20)), path)
    replace(read_manifest(path), num_items=19).write(path)
    with pytest.raises(ValueError, match="is damaged: its files have different numbers of items"):
        open_index(path)
    index.manifest.write(path)
    assert isinstance(open_index(path), SearchIndex)
    file = path / "index-1.faiss"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"index-1.faiss is damaged: its hash"):
        open_index(path)


def test_folder_of_the_images(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "0.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert image_folder_of(photos([0], tmp_path / "link")) == str(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    in_working_folder = photos([0], "/nowhere")._replace(paths=["real/0.jpg"])
    assert image_folder_of(in_working_folder) == str(tmp_path)
    assert image_folder_of(photos([1])) == "/photos"
    assert image_folder_of(photos([1])._replace(image_folder=None)) == ""
    assert image_folder_of(photos([1])._replace(paths=None)) == ""
    index = build_index(in_working_folder, "shop.faiss")
    assert index.file(0) == str(tmp_path / "real" / "0.jpg")


def test_items_are_added_while_another_process_opens_the_index(tmp_path, monkeypatch):
    """It reads index.json before, and the other files after they were replaced."""
    path = tmp_path / "shop.faiss"
    index = build_index(photos(range(20)), path)
    check = Manifest.check_files

    def add_first(manifest, folder):
        monkeypatch.setattr(Manifest, "check_files", check)
        index.add(photos(range(40)))
        manifest.check_files(folder)

    monkeypatch.setattr(Manifest, "check_files", add_first)
    assert found(open_index(path)) == expected(range(40))
