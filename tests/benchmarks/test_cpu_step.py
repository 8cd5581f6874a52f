import pytest

from lightning_recall.benchmarks import cpu_step


def test_prints_speed_by_format_chunks_and_allocation(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    small = ["--backbone", "resnet10t", "--image-size", "64", "--batch-size", "16", "--chunk-size", "8"]
    cpu_step.main([*small, "--repeats", "1"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row]
    names = ["whole batch", "chunks of 8", "chunks of 8, all kept"]
    assert [row[1] for row in rows] == 4 * names
    assert [row[0] for row in rows] == 2 * (3 * ["contiguous"] + 3 * ["channels_last"])
    assert [row[2] for row in rows] == 6 * ["glibc's default"] + 6 * ["keep_freed_memory"]
    assert rows[0][4] == "1.00"
    assert all(float(row[3]) > 0 and float(row[6].replace(",", "")) > 0 for row in rows)
    faults = [int(row[5].replace(",", "")) for row in rows]
    assert sum(faults[6:]) < sum(faults[:6])  # the memory of the step before is used again


@pytest.mark.parametrize("memory_format", cpu_step.FORMATS)
def test_the_network_has_the_memory_format(memory_format):
    model = cpu_step.build_model("test_efficientnet", memory_format)
    assert model.channels_last == (memory_format == "channels_last")
