import csv
import json

import numpy as np
import pytest
from rich import get_console

from lightning_recall.cli import main
from lightning_recall.cli.console import run


def write_set(folder, embeddings, paths, labels, weights):
    """Embeddings in the format of `EmbeddingWriter`."""
    folder.mkdir()
    ids = np.arange(len(labels))
    np.savez(folder / "shard-00-00000.npz", embeddings=embeddings.astype(np.float32), ids=ids, labels=labels)
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "class"])
        writer.writerows(zip(ids, paths, labels, [f"bird {label}" for label in labels], strict=True))
    about = {"model": {"module": "package.Embeds", "weights": weights}, "data": {"test": {"folder": None}}}
    (folder / "about.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def folders(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 30
    paths = [f"{label}/\x1b[31m[red]{i}.jpg" for i, label in enumerate(labels)]
    centres = generator.normal(size=(30, 12))[labels]
    first, second = centres + generator.normal(size=(2, 120, 12)) * np.array([[[1.3]], [[0.8]]])
    order = generator.permutation(120)
    return (
        write_set(tmp_path / "a", first, paths, labels, "1" * 40),
        write_set(tmp_path / "b", second[order], [paths[i] for i in order], labels[order], "2" * 40),
    )


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(get_console(), "_width", 120)


def command(*args):
    main(["compare", *map(str, args)])


def error(capsys, monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["lightning-recall", "compare", *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 1
    return " ".join(capsys.readouterr().err.split())


def test_prints_and_writes(folders, tmp_path, capsys):
    command(*folders, "--ks", 1, 5, "--to", tmp_path / "out")
    shown = capsys.readouterr().out
    assert f"A: {folders[0]} (Embeds, weights 111111111111)" in shown
    assert "120 images, 120 queries, 30 classes of queries" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith(("│ R@", "│ mAP"))] == [
        "R@1",
        "R@5",
        "mAP@R",
    ]
    assert "B is better" in shown
    assert "Classes in which B is better, by R@1 in %" in shown
    assert "queries right only in B, the worst first:" in shown
    assert "-> " in shown
    assert "\x1b" not in shown  # the terminal is not controlled by the names of files
    assert "�[31m[red]" in shown
    for name in ("compare.html", "classes.csv", "queries.csv"):
        assert f"Written: {tmp_path / 'out' / name}" in shown
        assert (tmp_path / "out" / name).stat().st_size > 1000
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"compare\.html exists already"):
        command(*folders, "--to", tmp_path / "out")
    with pytest.raises(ValueError, match=r"compare\.html exists already"):  # before the embeddings are read
        command(folders[0], tmp_path / "nowhere", "--to", tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_files_without_names_are_compared(tmp_path, capsys):
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path, seed in zip(paths, (0, 1), strict=True):
        embeddings = np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32)
        np.savez(path, embeddings=embeddings, labels=np.arange(60) // 2)
    command(*paths, "--scores", "mrr", "recall", "--ks", 1)
    shown = capsys.readouterr().out
    assert "mrr" in shown
    assert "class 3" in shown
    assert "item " in shown
    assert "no difference is shown" in shown
    np.savez(tmp_path / "c.npz", embeddings=embeddings)
    with pytest.raises(ValueError, match=r"c\.npz has no labels: embed a data set with labels"):
        command(paths[0], tmp_path / "c.npz")


def test_without_intervals_no_column_is_empty(tmp_path, capsys, folders):
    command(*folders)
    shown = capsys.readouterr().out
    assert "resamples" in shown
    assert "In brackets: 95 % intervals" in shown
    for name, seed in (("a", 0), ("b", 1)):
        embeddings = np.random.default_rng(seed).normal(size=(40, 4)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", embeddings=embeddings, labels=np.arange(40) // 4)
    command(tmp_path / "a.npz", tmp_path / "b.npz")
    shown = capsys.readouterr().out
    assert "│ not known: 10 classes, fewer than 20 │" in shown
    assert "resamples" not in shown
    assert "In brackets" not in shown


def test_the_same_model_is_noticed(folders, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folders[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    command(folders[0], copy)
    shown = capsys.readouterr().out
    assert "A and B have the same weights: they are embeddings of one model." in shown
    assert "0 queries right only in A\n0 queries right only in B\n" in shown
    assert "Classes in which" not in shown


def test_bad_input_is_answered_in_a_sentence(folders, tmp_path, capsys, monkeypatch):
    assert "was given twice" in error(capsys, monkeypatch, folders[0], folders[0])
    assert "There are no embeddings in" in error(capsys, monkeypatch, folders[0], tmp_path)
    assert "scores must be distinct names from" in error(capsys, monkeypatch, *folders, "--scores", "accuracy")
    (folders[1] / "shard-00-00000.npz").write_bytes(b"broken")
    out = tmp_path / "out"
    shown = error(capsys, monkeypatch, *folders, "--to", out)
    assert "shard-00-00000.npz is damaged" in shown
    assert not out.exists()
