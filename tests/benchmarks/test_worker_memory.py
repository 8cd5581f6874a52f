from lightning_recall.benchmarks import worker_memory


def test_chunks_take_less_than_batches(capsys, tmp_path):
    sizes = ["--batch-size", "400", "--image-size", "128", "--chunk-size", "20"]
    worker_memory.main([*sizes, "--folder", str(tmp_path)])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    chunks, batch = (int(row[3]) for row in rows)
    assert chunks < batch * 0.8  # a rough reading of a whole process: 42 and 23 MiB where it was least
