from lightning_recall.benchmarks import loading


def test_prints_speeds(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    small = ["--side", "64", "--images", "48", "--batch-size", "16", "--chunk-size", "8", "--workers", "0", "2"]
    loading.main(["--folder", str(tmp_path), *small])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row]
    assert [row[0] for row in rows] == [
        "decode",
        "augment",
        "both, one process",
        "loader, 0 workers",
        "loader, 2 workers",
    ]
    speeds = [float(row[1].replace(",", "")) for row in rows]
    assert min(speeds) > 0
    assert speeds[2] < min(speeds[:2])
