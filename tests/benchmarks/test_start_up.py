import pytest

from lightning_recall.benchmarks import start_up


@pytest.fixture
def prepared(tmp_path):
    start_up.prepare(tmp_path, images=160)
    return tmp_path


def test_prints_seconds_and_ratios(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    times = iter([*range(1, 12), *range(21, 10, -1)])  # of two rounds
    monkeypatch.setattr(start_up, "seconds", lambda *_: float(next(times)))
    start_up.main(["--images", "80", "--repeats", "2"])
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert "torch" in shown.splitlines()[0]
    assert "best of 2" in shown.splitlines()[0]
    assert [row[1] for row in rows] == [f"{number}.00" for number in range(1, 12)]
    assert rows[1] == [start_up.IMPORTS, "2.00", "1.00", ""]
    assert rows[-1] == ["fit, first batch", "11.00", "5.50", "1.10"]


@pytest.mark.parametrize("row", [start_up.READING, start_up.FIT, "missing folder of images", "misspelt option"])
def test_each_command_ends_where_it_should(row, prepared):
    arguments, exit_code = start_up.commands_in(prepared)[row]
    assert start_up.seconds(arguments, exit_code, prepared) > 0


def test_a_command_that_fails_is_no_measurement(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1 instead of 0: .*No module named 'nothing'"):
        start_up.seconds(["-c", "import nothing"], 0, tmp_path)
