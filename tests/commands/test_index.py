import argparse
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import draw
from indexed_photos import CLASSES, copy_photos, embed, make_module, make_photos

from lightning_recall import ImageEmbedder, RetrievalModule
from lightning_recall.cli import main
from lightning_recall.commands import index as index_command
from lightning_recall.embedding_sets import read_embedding_set
from lightning_recall.indexes import open_index
from lightning_recall.search import EmbeddingBlocks, nearest

pytest.importorskip("faiss")  # an extra


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("made"))


@pytest.fixture
def shop(made, tmp_path):
    return copy_photos(made, tmp_path / "shop")


def build(shop, *options):
    main(["index", str(shop / "embeddings"), "--to", str(shop / "shop.faiss"), *options])
    return open_index(shop / "shop.faiss")


def test_an_index_of_what_predict_has_written(shop, capsys):
    index = build(shop)
    printed = capsys.readouterr().out
    assert printed.startswith("Index of 6 items, exact (faiss), ")
    assert "finds" not in printed
    given = read_embedding_set(shop / "embeddings")
    assert [item.path for item in index.items] == given.paths
    assert [item.class_name for item in index.items] == ["cat"] * 3 + ["dog"] * 3
    assert index.manifest.weights == given.model["weights"]
    assert index.manifest.image_folder == str(shop / "photos")
    assert index.threshold == 0.5
    names = {file.name for file in (shop / "embeddings" / "model").iterdir()}
    assert {file.name for file in index.model_folder.iterdir()} == names


def test_new_images_are_added(shop, capsys):
    index = build(shop)
    capsys.readouterr()
    (shop / "photos" / "cat" / "broken.png").write_bytes(b"no image")
    (shop / "photos" / "notes.txt").write_text("no image")
    draw(shop / "photos" / "new.jpg")
    main(["index", "--add", str(shop / "photos"), "--to", str(shop / "shop.faiss")])
    printed = capsys.readouterr().out
    assert f"Cannot read {shop}/photos/cat/broken.png: " in printed
    assert "Added 7 of 13 items (6 were in it); the index now has 13" in printed
    index = open_index(shop / "shop.faiss")
    names = [f"{name}/{number}.png" for name in CLASSES for number in range(3, 6)]
    assert [item.path for item in index.items[6:]] == [*names, "new.jpg"]
    assert [item.class_name for item in index.items[6:]] == ["cat"] * 3 + ["dog"] * 3 + [""]
    assert [item.id for item in index.items] == list(range(13))
    everything = embed(shop, [index.file(row) for row in range(len(index))])
    similarities, rows = index.search(everything, 5)
    values, items = nearest(EmbeddingBlocks(everything), EmbeddingBlocks(everything), 5)
    torch.testing.assert_close(similarities, values, atol=1e-5, rtol=0)
    assert rows.tolist() == items.tolist()


def test_adding_again_changes_nothing(shop, capsys):
    build(shop)
    add = ["index", "--add", str(shop / "photos"), "--to", str(shop / "shop.faiss")]
    main(add)
    content = {file: file.read_bytes() for file in (shop / "shop.faiss").rglob("*") if file.is_file()}
    capsys.readouterr()
    main(add)
    assert "Added 0 of 12 items (12 were in it); the index now has 12" in capsys.readouterr().out
    main(["index", "--add", str(shop / "embeddings"), "--to", str(shop / "shop.faiss")])
    assert "Added 0 of 6 items (6 were in it)" in capsys.readouterr().out
    assert content == {file: file.read_bytes() for file in (shop / "shop.faiss").rglob("*") if file.is_file()}
    (shop / "photos" / "cat" / "5.png").unlink()
    main(add)
    printed = capsys.readouterr().out
    assert f"1 item of the index had files in {shop}/photos that are gone: they stay in it." in printed
    assert len(open_index(shop / "shop.faiss")) == 12


def test_images_are_saved_in_portions(shop, monkeypatch):
    build(shop)
    monkeypatch.setattr(index_command, "IMAGES_PER_SAVE", 4)
    main(["index", "--add", str(shop / "photos"), "--to", str(shop / "shop.faiss")])
    index = open_index(shop / "shop.faiss")
    assert index.manifest.generation == 3
    _, rows = index.search(embed(shop, [index.file(row) for row in range(len(index))]), 1)
    assert rows[:, 0].tolist() == list(range(12))


def test_a_checkpoint_gives_the_model(shop, tmp_path):
    shutil.rmtree(shop / "embeddings" / "model")
    index = build(shop, "--model", str(shop / "model.ckpt"))
    reloaded = RetrievalModule.from_pretrained(index.model_folder)
    for name, value in make_module(1).state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    shutil.rmtree(shop / "shop.faiss")
    with pytest.raises(ValueError, match="is not a checkpoint of RetrievalModule"):
        build(shop, "--model", str(tmp_path / "text.ckpt"))


def test_the_recall_of_an_approximate_index_is_printed(tmp_path, capsys):
    embeddings = torch.randn(500, 8)
    np.savez(tmp_path / "a.npz", embeddings=embeddings)
    main(["index", str(tmp_path / "a.npz"), "--to", str(tmp_path / "a.faiss"), "--kind", "ivf"])
    recall = open_index(tmp_path / "a.faiss").manifest.recall
    printed = capsys.readouterr().out
    assert f"It finds {100 * recall['recall']:.1f} % of the 10 nearest of 500 sampled items." in printed
    assert "It has no model: search it with embeddings" in printed


def test_qdrant(shop, tmp_path, capsys):
    qdrant_client = pytest.importorskip("qdrant_client")  # an extra
    main(["index", str(shop / "embeddings"), "--to-qdrant", str(tmp_path / "qdrant"), "--collection", "shop"])
    assert f"Collection shop of 6 items: {tmp_path / 'qdrant'}" in capsys.readouterr().out
    client = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
    (point,) = client.retrieve("shop", [3])
    assert point.payload == {"path": str(shop / "photos" / "dog" / "0.png"), "label": 1, "class": "dog"}
    client.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "index needs a target: either --to INDEX, or --to-qdrant"),
        ("--to a --to-qdrant b --collection c", "index needs a target: either"),
        ("--to-qdrant b", "--to-qdrant and --collection belong together"),
        ("--to a --collection c", "--to-qdrant and --collection belong together"),
        ("--to a --add --kind hnsw --model m", "--kind and --model can be chosen only for a new index"),
        ("--to-qdrant b --collection c --engine faiss", "--engine can be chosen only for a new index"),
        ("--to-qdrant b --collection c --add", "--add adds to an index, not to Qdrant"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    parser = argparse.ArgumentParser()
    index_command.add_arguments(parser)
    with pytest.raises(ValueError, match=message):
        index_command.run(parser.parse_args(["source", *options.split()]))


def test_bad_input(shop, tmp_path):
    build(shop)
    add = ["index", "--to", str(shop / "shop.faiss"), "--add"]
    with pytest.raises(ValueError, match=r"shop.faiss exists: choose another name"):
        build(shop)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image files, such as .jpg or .png"):
        main([*add, str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="nothing is not a folder: pass a folder of images, or embeddings"):
        main([*add, str(tmp_path / "nothing")])
    np.savez(tmp_path / "a.npz", embeddings=np.eye(3))
    with pytest.raises(ValueError, match="embeddings have dimension 3, but those of the index have dimension 8"):
        main([*add, str(tmp_path / "a.npz")])
    main(["index", str(tmp_path / "a.npz"), "--to", str(tmp_path / "a.faiss")])
    with pytest.raises(ValueError, match=r"a.faiss has no model, so that it cannot embed images"):
        main(["index", "--to", str(tmp_path / "a.faiss"), "--add", str(shop / "photos")])


def test_another_model(shop, tmp_path):
    build(shop)
    other = make_module(2)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"The index belongs to another model than .*other: their weights differ"):
        main(["index", str(shop / "embeddings"), "--to", str(tmp_path / "b.faiss"), "--model", str(tmp_path / "other")])
    assert not (tmp_path / "b.faiss").exists()
    about = shop / "embeddings" / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "model": {"weights": "other"}}))
    with pytest.raises(ValueError, match=r"another model than .*embeddings"):
        main(["index", "--to", str(shop / "shop.faiss"), "--add", str(shop / "embeddings")])
    shutil.rmtree(shop / "shop.faiss" / "model")
    shutil.copytree(tmp_path / "other", shop / "shop.faiss" / "model")
    with pytest.raises(ValueError, match=r"another model than .*shop.faiss/model"):
        main(["index", "--to", str(shop / "shop.faiss"), "--add", str(shop / "photos")])
    with (shop / "shop.faiss" / "items-1.csv").open() as file:
        assert len(list(csv.reader(file))) == 7


class OwnEmbedder(ImageEmbedder):
    """A class that is not of this package."""


def test_classes_of_the_user_are_trusted_by_name(shop, capsys):
    module = make_module(1)
    module.embedder.__class__ = OwnEmbedder
    name = f"{OwnEmbedder.__module__}.OwnEmbedder"
    shutil.rmtree(shop / "embeddings" / "model")
    module.save_pretrained(shop / "embeddings" / "model")
    with pytest.raises(ValueError, match="OwnEmbedder"):
        build(shop)
    assert not (shop / "shop.faiss").exists()
    build(shop, "--trust", name)
    add = ["index", "--add", str(shop / "photos"), "--to", str(shop / "shop.faiss")]
    with pytest.raises(ValueError, match="OwnEmbedder"):
        main(add)
    main([*add, "--trust", name])
    assert "Added 6 of 12" in capsys.readouterr().out
    query = ["search", str(shop / "shop.faiss"), str(shop / "photos" / "cat" / "0.png")]
    with pytest.raises(ValueError, match="OwnEmbedder"):
        main(query)
    main([*query, "--trust", name])
    assert "cat/0.png" in capsys.readouterr().out
