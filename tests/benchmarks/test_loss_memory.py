from lightning_recall.benchmarks import loss_memory


def test_prints_megabytes(capsys):
    loss_memory.main(["--sizes", "64", "4000", "--dim", "16"])
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row[0].strip() for row in rows] == ["64", "4,000"]
    assert 10 < float(rows[1][1]) < 110  # the blocks, and less than the 61 MiB of the matrix twice
