from lightning_recall.benchmarks import loading


def test_prints_speeds(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    small = ["--sizes", "64x48", "256x256", "--image-size", "32", "--images", "48", "--rounds", "1"]
    loaders = ["--batch-size", "16", "--chunk-size", "8", "--workers", "2", "--start-methods", "fork"]
    loading.main(["--folder", str(tmp_path / "drawn"), *small, *loaders])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [row[:2] for row in rows[:-1]] == [
        [size, decoding] for size in ("64x48", "256x256") for decoding in ("full", "reduced")
    ]
    for row in rows[:-1]:
        bare, plain, ours = (float(cell.replace(",", "")) for cell in row[2:5])
        assert min(bare, plain, ours) > 0
        assert abs(float(row[5]) - ours / bare) < 0.02 * ours / bare + 0.01
    method, *seconds = rows[-1]
    assert method == "fork"
    assert all(float(cell) >= 0 for cell in seconds)
