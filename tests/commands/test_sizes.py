import csv

import numpy as np
import pytest
import torch
from rich import get_console

from lightning_recall.cli import main


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) // 4
    embeddings = torch.randn(15, 32, generator=generator)[labels] + torch.randn(60, 32, generator=generator)
    path = tmp_path_factory.mktemp("sizes") / "embeddings.npz"
    np.savez(path, embeddings=embeddings, labels=labels)
    return path


@pytest.mark.filterwarnings("ignore:No row for")  # the set is too small for a product quantizer
@pytest.mark.parametrize("width", [80, 100])
def test_the_command_prints_draws_and_writes(file, tmp_path, capsys, monkeypatch, width):
    monkeypatch.setattr(get_console(), "_width", width)  # from COLUMNS, which is read once
    plot, table = tmp_path / "sizes.png", tmp_path / "sizes.csv"
    options = ["--ks", "1,5", "--dims", "16", "--queries", "50", "--plot", str(plot), "--csv", str(table)]
    main(["sizes", str(file), *options])
    printed = capsys.readouterr().out
    with table.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    lines = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    assert [cells[0].strip() for cells in lines] == [row["method"] for row in rows]
    assert "binary, centred, x4 float" in {row["method"] for row in rows}
    percents = [[f"{100 * float(row[key]):.1f}" for key in ("recall@1", "recall@5", "map@r")] for row in rows]
    assert [[cell.strip() for cell in cells[2:5]] for cells in lines] == percents
    assert "…" not in printed
    text = " ".join(printed.split())
    for part in (
        f"60 embeddings of 32 dimensions: {file}",
        "R@1",
        "mAP@R",
        "of 50 of 60 queries",
        "the gallery itself",
    ):
        assert part in text
    assert {row["num_queries"] for row in rows} == {"50"}
    assert plot.stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:No row for")
def test_many_scores_wrap_the_names(file, capsys, monkeypatch):
    monkeypatch.setattr(get_console(), "_width", 80)
    main(["sizes", str(file), "--ks", "1,2,4,8", "--dims", "16"])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines()[1:])) <= 80
    names = " ".join(line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│"))
    assert "binary, centred, x4 float" in names
    assert "of 60 queries" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "FILE"], "--plot must be a new file, and .* exists: pass another name, or delete it"),
        (["--csv", "FILE"], "--csv must be a new file"),
        (["--csv", "FOLDER/none/sizes.csv"], "there is no .*none: create it first"),
        (["--plot", "FOLDER/sizes.jpg"], "--plot must end in .png, .pdf, .svg, got"),
        (["--ks", "60"], "ks must be at most 59"),
        (["--queries", "0"], "max_queries must be at least 1, got 0"),
        (["--dims", "64"], "dims must be distinct and from 1 to 31"),
    ],
)
def test_bad_input(file, options, message):
    given = [text.replace("FILE", str(file)).replace("FOLDER", str(file.parent)) for text in options]
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message):
        main(["sizes", str(file), *given])
    assert file.read_bytes() == before
