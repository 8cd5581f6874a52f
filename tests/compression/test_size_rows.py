import csv
import math

import pytest

from lightning_recall.compression import SizeRow, write_size_csv


def test_csv_holds_the_rows(tmp_path):
    rows = [
        SizeRow("PCA 8", "PCA", 8, 32, 288, {"recall@1": 0.5, "map@r": 0.25}, 40, 1.5, 0.25, "torch"),
        SizeRow(
            "IVF9,Flat, nprobe 2", "faiss", 16, 72.5, 576, {"recall@1": 0.75, "map@r": math.nan}, 40, 2, 3, "faiss"
        ),
    ]
    file = tmp_path / "sizes.csv"
    write_size_csv(rows, file)
    with file.open(newline="") as opened:
        first, second = csv.DictReader(opened)
    assert list(first.items())[:5] == [
        *(("method", "PCA 8"), ("family", "PCA"), ("dim", "8"), ("bytes_per_image", "32"), ("shared_bytes", "288")),
    ]
    assert list(first.items())[5:] == [
        *(("recall@1", "0.5"), ("map@r", "0.25"), ("num_queries", "40"), ("build_seconds", "1.5")),
        *(("search_ms", "0.25"), ("engine", "torch")),
    ]
    assert (second["method"], second["map@r"], second["engine"]) == ("IVF9,Flat, nprobe 2", "", "faiss")
    with pytest.raises(FileExistsError):
        write_size_csv(rows, file)
