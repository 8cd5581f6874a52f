from lightning_recall.benchmarks import recompute_networks


def test_prints_a_row_for_each_network(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    recompute_networks.main(["--image-size", "32", "--batch-size", "16", "--chunk-size", "8", "--repeats", "1"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row]
    assert [row[0] for row in rows] == list(recompute_networks.NETWORKS)
    assert all(float(cell) > 0 for row in rows for cell in row[2:])
