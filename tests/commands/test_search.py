import csv
import os
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import draw
from indexed_photos import copy_photos, embed, make_module, make_photos, predict

from lightning_recall.cli import main
from lightning_recall.commands import search_results
from lightning_recall.commands.queries import Answer, Neighbor
from lightning_recall.commands.search_results import load, print_tables, printable, write_csv
from lightning_recall.indexes import Item
from lightning_recall.models import MultiScale

pytest.importorskip("faiss")  # an extra


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = make_photos(tmp_path_factory.mktemp("made"))
    main(["index", str(root / "embeddings"), "--to", str(root / "shop.faiss")])
    return root


@pytest.fixture
def found(made, tmp_path, monkeypatch):
    """Searches, and reads the CSV file."""
    monkeypatch.setenv("COLUMNS", "200")
    number = iter(range(9))

    def search(*options, index=made / "shop.faiss"):
        file = tmp_path / f"{next(number)}.csv"
        try:
            main(["search", str(index), *map(str, options), "--csv", str(file)])
        finally:
            rows = []
            if file.exists():
                with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
                    rows = list(csv.DictReader(opened))
        return rows

    return search


def test_images_are_searched(made, found, capsys):
    queries = [made / "photos" / "cat" / "4.png", made / "photos" / "dog" / "1.png"]
    rows = found(*queries, "-k", 3, "--threshold", 0.99)
    files = [made / "photos" / name / f"{n}.png" for name in ("cat", "dog") for n in range(3)]
    similarities = (embed(made, queries) @ embed(made, files).T).numpy()
    assert [row["query"] for row in rows] == [str(query) for query in queries for _ in range(3)]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    order = np.argsort(-similarities, 1)[:, :3]
    assert [row["file"] for row in rows] == [str(files[item]) for item in order.ravel()]
    assert [int(row["id"]) for row in rows] == order.ravel().tolist()
    assert [row["class"] for row in rows] == [files[item].parent.name for item in order.ravel()]
    assert [row["label"] for row in rows] == [str(item // 3) for item in order.ravel()]
    values = np.array([float(row["similarity"]) for row in rows])
    np.testing.assert_allclose(values, np.take_along_axis(similarities, order, 1).ravel(), atol=2e-6)
    assert values[3] == pytest.approx(1, abs=1e-5)
    assert [row["match"] for row in rows] == ["yes" if value >= 0.99 else "no match" for value in values]
    assert {row["match"] for row in rows} == {"yes", "no match"}
    printed = capsys.readouterr().out
    assert "dog/1.png" in printed
    assert printed.count("no match") == sum(values < 0.99) + 1
    assert "Threshold: 0.990. Items below it are no match." in printed


def test_the_threshold_of_the_model_is_the_default(made, found, capsys, tmp_path):
    found(made / "photos" / "cat" / "0.png")
    assert "Threshold: 0.500." in capsys.readouterr().out
    np.savez(tmp_path / "a.npz", embeddings=np.eye(3))
    main(["index", str(tmp_path / "a.npz"), "--to", str(tmp_path / "a.faiss")])
    rows = found(tmp_path / "a.npz", index=tmp_path / "a.faiss")
    assert {row["match"] for row in rows} == {""}
    printed = capsys.readouterr().out
    assert "Threshold" not in printed
    assert "match" not in printed
    assert [row["query"] for row in rows[::3]] == ["a.npz 0", "a.npz 1", "a.npz 2"]
    assert [row["id"] for row in rows[::3]] == ["0", "1", "2"]
    assert len(rows) == 9  # 8 neighbours are the default, there are 3


def test_images_and_embeddings_are_queries_in_their_order(made, found, tmp_path):
    photos = [made / "photos" / "dog" / f"{n}.png" for n in (5, 4)]
    np.savez(tmp_path / "4.npz", embeddings=embed(made, photos[1:]).half(), ids=[77])
    rows = found(photos[0], tmp_path / "4.npz", made / "embeddings", photos[1], "-k", 1)
    names = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(3)]
    assert [row["query"] for row in rows] == [str(photos[0]), "4.npz 77", *names, str(photos[1])]
    assert rows[1]["file"] == rows[-1]["file"]
    assert [row["file"] for row in rows[2:8]] == [str(made / "photos" / name) for name in names]


def test_a_picture_is_drawn(made, found, tmp_path, capsys):
    query = made / "photos" / "cat" / "4.png"
    for _ in range(2):
        found(query, "-k", 2, "--draw", tmp_path / "found.png")
    assert plt.imread(tmp_path / "found.png").std() > 0.1
    assert plt.imread(tmp_path / "found-1.png").std() > 0.1  # nothing is overwritten
    assert f"Picture: {tmp_path / 'found-1.png'}" in capsys.readouterr().out


def test_what_is_drawn(tmp_path):
    draw(tmp_path / "cat" / "a.png", size=(640, 480))
    item = Item(3, "cat/a.png", 0, "cat\x1b")
    answer = Answer(
        "x/query.png", str(tmp_path / "gone.png"), [Neighbor(0.75, item, str(tmp_path / "cat/a.png"), True)]
    )
    gone = Answer("a.npz 1", "", [Neighbor(0.1, Item(4, "cat/b.png", 0, "cat"), str(tmp_path / "b.png"), False)])
    nameless = Answer("a.npz 2", "", [Neighbor(0.2, Item(5), "", False)])
    (axes,) = search_results.draw([answer, gone, nameless], 0.5).axes
    texts = [text.get_text() for text in axes.texts]
    first = ["query", "query.png", "no image", "0.75", "cat\ufffd"]
    second = ["query", "a.npz 1", "no image", "0.10\nno match", "b.png", "no image"]
    assert texts == [*first, *second, "query", "a.npz 2", "no image", "0.20\nno match", "id 5", "no image"]
    assert axes.images[1].get_array().shape == (240, 320, 3)
    assert load(str(tmp_path / "cat")) is None


def test_moved_images(made, found, tmp_path):
    (made / "photos").rename(made / "moved")
    query = made / "moved" / "cat" / "4.png"
    there = found(query, "-k", 1, "--images", made / "moved")[0]["file"]
    gone = found(query, "-k", 1, "--draw", tmp_path / "found.png")[0]["file"]
    (made / "moved").rename(made / "photos")
    assert os.path.relpath(there, made / "moved") == os.path.relpath(gone, made / "photos")
    with pytest.raises(ValueError, match=r"--images .*nowhere is not a folder"):
        found(query, "--images", made / "nowhere")


def test_many_queries(made, found, capsys):
    rows = found(*[made / "embeddings"] * 4, "-k", 1, "--threshold", 0)
    assert len(rows) == 24
    printed = capsys.readouterr().out
    assert "Tables and picture show the first 20 of 24 queries; --csv writes all." in printed
    assert printed.count("similarity") == 20


def test_unreadable_queries_are_named_after_the_others_are_answered(made, found, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("text.jpg", "gone.jpg"):
        with pytest.raises(ValueError, match=f"These queries cannot be read as images: .*{name}: ") as raised:
            found(tmp_path / name, made / "photos" / "cat" / "4.png", "-k", 1)
        assert "cat/4.png" in capsys.readouterr().out
    assert "there is no such file" in str(raised.value)
    with pytest.raises(ValueError, match="These queries"):
        found(tmp_path / "text.jpg", "--draw", tmp_path / "found.png")
    assert not (tmp_path / "found.png").exists()


def test_bad_input(made, found, tmp_path):
    query = made / "photos" / "cat" / "4.png"
    with pytest.raises(ValueError, match="k must be at most 6, the number of items in the index, got 7"):
        found(query, "-k", 7)
    with pytest.raises(ValueError, match=r"--draw must be in an existing folder, and there is no .*none: create it"):
        found(query, "--draw", tmp_path / "none" / "found.png")
    with pytest.raises(ValueError, match=r"--draw must end in .png, .jpg, .pdf, .svg, got .*found[.]"):
        found(query, "--draw", tmp_path / "found")
    with pytest.raises(ValueError, match=r"photos is not an index, it has no index.json"):
        found(query, index=made / "photos")
    np.savez(tmp_path / "a.npz", embeddings=np.eye(3))
    with pytest.raises(
        ValueError, match=r"a.npz: embeddings have dimension 3, but those of the index have dimension 8"
    ):
        found(tmp_path / "a.npz")
    main(["index", str(tmp_path / "a.npz"), "--to", str(tmp_path / "a.faiss")])
    with pytest.raises(ValueError, match=r"has no model, .* pass embeddings \(.npz, .safetensors"):
        found(query, index=tmp_path / "a.faiss")


def test_another_model(made, found, tmp_path):
    shop = copy_photos(made, tmp_path / "shop")
    about = shop / "embeddings" / "about.json"
    about.write_text(about.read_text().replace('"weights": "', '"weights": "0'))
    with pytest.raises(ValueError, match=r"The index belongs to another model than .*embeddings"):
        found(shop / "embeddings", index=shop / "shop.faiss")
    shutil.rmtree(shop / "shop.faiss" / "model")
    make_module(2).save_pretrained(shop / "shop.faiss" / "model")
    with pytest.raises(ValueError, match=r"The index belongs to another model than .*shop.faiss/model"):
        found(shop / "photos" / "cat" / "4.png", index=shop / "shop.faiss")


def test_names_cannot_control_the_terminal(capsys, tmp_path):
    name = os.fsdecode(b"[red]\x1b[2J\xff\n.jpg")
    answers = [Answer(name, "", [Neighbor(0.5, Item(1, name, class_name=name), name, None)])]
    print_tables(answers, None)
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed
    assert printed.count("[red]\ufffd[2J\ufffd\ufffd.jpg") == 3
    write_csv(tmp_path / "a.csv", answers)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert next(csv.DictReader(file))["file"] == name
    assert printable("é 猫") == "é 猫"


def test_test_time_augmentation_is_used(made, tmp_path, found):
    """The index has the model's embeddings with augmentation, and so have the queries."""
    module = make_module(3)
    module.test_time_augmentation = MultiScale(scales=(1.0,), flip=True)
    predict(module, made / "photos", ["cat/0.png", "dog/0.png"], tmp_path / "embeddings")
    main(["index", str(tmp_path / "embeddings"), "--to", str(tmp_path / "shop.faiss")])
    rows = found(made / "photos" / "cat" / "0.png", index=tmp_path / "shop.faiss")
    assert rows[0]["file"] == str(made / "photos" / "cat" / "0.png")
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)
    plain = module(module.preprocess(made / "photos" / "cat" / "0.png")[None]).detach()
    augmented = torch.from_numpy(np.load(next((tmp_path / "embeddings").glob("shard*")))["embeddings"][0])
    assert float(plain @ augmented) < 1 - 1e-4  # the augmentation matters


def test_the_python_of_the_how_to_page(made, monkeypatch, tmp_path):
    """The blocks that need a model; `test_snippets_run` runs the other."""
    page = (Path(__file__).parents[2] / "docs" / "how_to" / "search.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "FOLDER" in block)
    shutil.copytree(made / "shop.faiss", tmp_path / "shop.faiss")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace("FOLDER/query.jpg", str(made / "photos" / "dog" / "2.png")), names)
    assert names["found"][0] == (pytest.approx(1, abs=1e-5), str(made / "photos" / "dog" / "2.png"), "dog")
    assert len(names["found"]) == 3
