from lightning_recall.benchmarks import recompute


def test_prints_times_and_memory(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "160")
    small = ["--backbone", "resnet10t", "--image-size", "32", "--chunk-size", "8"]
    plot = tmp_path / "memory.png"
    recompute.main([*small, "--chunks", "1", "4", "--compare-chunks", "2", "--repeats", "1", "--plot", str(plot)])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row]
    assert [row[0] for row in rows] == [
        "whole batch at once",
        "in chunks",
        "in chunks, keep_chunks=1",
        "in chunks, keep_chunks=2",
        "1",
        "4",
    ]
    assert rows[0][2] == "1.00"
    assert [row[1] for row in rows[4:]] == ["8", "32"]
    assert int(rows[5][2]) >= int(rows[4][2]) > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
