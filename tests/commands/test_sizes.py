import numpy as np
import pytest
import torch

from lightning_recall.cli import main


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) // 4
    embeddings = torch.randn(15, 32, generator=generator)[labels] + torch.randn(60, 32, generator=generator)
    path = tmp_path_factory.mktemp("sizes") / "embeddings.npz"
    np.savez(path, embeddings=embeddings, labels=labels)
    return path


@pytest.mark.filterwarnings("ignore:No row for faiss")  # the set is too small for a product quantizer
def test_the_command_prints_draws_and_writes(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    plot, table = tmp_path / "sizes.png", tmp_path / "sizes.csv"
    main(["sizes", str(file), "--ks", "1,5", "--dims", "16", "--plot", str(plot), "--csv", str(table)])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("60 embeddings", "R@1", "R@5", "mAP@R", "binary, rescored x4 by int8", "Fitted on the gallery itself"):
        assert part in text
    assert plot.stat().st_size > 10_000
    assert len(table.read_text().splitlines()) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "FILE"], "--plot must be a new file, and .* exists: pass another name, or delete it"),
        (["--csv", "FILE"], "--csv must be a new file"),
        (["--csv", "FOLDER/none/sizes.csv"], "there is no .*none: create it first"),
        (["--plot", "FOLDER/sizes.jpg"], "--plot must end in .png, .pdf, .svg, got"),
        (["--ks", "60"], "ks must be at most 59"),
        (["--dims", "64"], "dims must be distinct and from 1 to 31"),
    ],
)
def test_bad_input(file, options, message):
    given = [text.replace("FILE", str(file)).replace("FOLDER", str(file.parent)) for text in options]
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message):
        main(["sizes", str(file), *given])
    assert file.read_bytes() == before
