import csv

import pytest

from lightning_recall.comparison import compare, write_comparison
from lightning_recall.comparison.output import cell, new_paths


def rows_of(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_class_and_query(two_sets, tmp_path):
    comparison = compare(*two_sets, ks=(1,))
    paths = write_comparison(comparison, tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["compare.html", "classes.csv", "queries.csv"]
    classes, queries = rows_of(paths[1]), rows_of(paths[2])
    assert [int(row["label"]) for row in classes] == [each.label for each in comparison.classes]
    for row, each in zip(classes, comparison.classes, strict=True):
        assert (row["class"], int(row["queries"])) == (each.name, each.num_queries)
        assert (int(row["right only in A"]), int(row["right only in B"])) == (each.lost, each.gained)
        for name in ("recall@1", "map@r"):
            found = float(row[f"{name} A"]), float(row[f"{name} B"])
            assert found == pytest.approx((each.first[name], each.second[name]), rel=1e-5)
    assert [row["path"] for row in queries] == two_sets[0].paths
    assert [int(row["id"]) for row in queries] == two_sets[0].ids.tolist()
    ranks = [(int(row["first_rank A"]), int(row["first_rank B"])) for row in queries]
    assert ranks == list(zip(*(result.first_ranks.tolist() for result in comparison.results), strict=True))
    changed = {i for i, pair in enumerate(ranks) if (pair[0] == 1) != (pair[1] == 1)}
    assert changed == set(comparison.changes.queries.tolist())
    wrong = dict(zip(comparison.changes.queries.tolist(), comparison.changes.wrong.tolist(), strict=True))
    for i, row in enumerate(queries):
        right = {(True, False): "A", (False, True): "B"}.get((ranks[i][0] == 1, ranks[i][1] == 1), "")
        assert row["right only in"] == right
        assert row["wrong neighbor"] == (two_sets[0].paths[wrong[i]] if right else "")


def test_names_survive_and_no_formula_is_left(two_sets, tmp_path):
    names = ["=cmd()", "+1", "-1", "@x", "\ta", "a,b", 'quote"', "two\nlines", "\udcff.jpg", "é"]
    first, second = (each._replace(paths=[*names, *each.paths[10:]], classes=["=1+1"] * 150) for each in two_sets)
    paths = write_comparison(compare(first, second), tmp_path)
    found = [row["path"] for row in rows_of(paths[2])][:10]
    assert found == [f"'{name}" for name in names[:5]] + names[5:]
    assert {row["class"] for path in paths[1:] for row in rows_of(path)} == {"'=1+1"}


def test_cells():
    assert [cell(value) for value in (float("nan"), 1.0, -2, "", "-")] == ["", "1", -2, "", "'-"]


@pytest.mark.parametrize("name", ["compare.html", "classes.csv", "queries.csv"])
def test_nothing_is_overwritten(name, two_sets, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} exists already, and is not overwritten: choose another folder"):
        write_comparison(compare(*two_sets), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_to_nowhere_is_not_overwritten(tmp_path):
    (tmp_path / "queries.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"queries\.csv exists already"):
        new_paths(tmp_path)
