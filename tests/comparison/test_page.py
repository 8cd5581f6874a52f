import html.parser
import re
import shutil
import subprocess

import pytest
from PIL import Image

from lightning_recall.comparison import compare, write_comparison
from lightning_recall.comparison.page import class_row, extremes, page, score_row
from lightning_recall.metrics.scores import score_title

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ATTACKS = (
    "</script><img src=x onerror=alert(1)>",
    "</div></style><script>document.title = 'attacked'</script>",
    "\" onmouseover=\"document.title = 'attacked'",
    "' style='background: url(https://example.org/x)",
    "{{ 7 * 7 }}\n<iframe src=javascript:alert(1)>",
    "\udcff<b>\x1b[31m\u202e",
)


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data.strip())


@pytest.fixture
def attacked(two_sets):
    """Sets whose class and file names are attacks."""

    def rename(each):
        names = [ATTACKS[int(label) % len(ATTACKS)] + f" {label}" for label in each.labels]
        return each._replace(
            classes=names, paths=[f"{name}/{i}" for i, name in enumerate(names)], model={"weights": ATTACKS[0]}
        )

    return [rename(each) for each in two_sets]


def test_names_are_text_and_nothing_is_loaded(attacked, tmp_path):
    path, *_ = write_comparison(compare(*attacked), tmp_path)
    parsed = Page(text := path.read_text(encoding="utf-8"))
    assert not parsed.tags & {"script", "iframe", "img", "link", "object", "a", "b"}
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert not re.search(r"@import|url\((?!https://example.org/x)", text)  # the exception is in the name of a class
    assert any(name == "content" and value.startswith("default-src 'none'") for name, value in parsed.attributes)
    assert {attack.strip() for attack in ATTACKS[:4]} <= {entry.rpartition(" ")[0] for entry in parsed.text}
    assert any(entry.startswith("{{ 7 * 7 }}") for entry in parsed.text)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome: apt install chromium")
def test_a_browser_runs_nothing(attacked, tmp_path):
    path, *_ = write_comparison(compare(*attacked), tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>Comparison of two models</title>" in shown
    assert "<script" not in shown
    assert "onerror" in shown  # as text


def test_the_page_shows_scores_counts_and_classes(two_sets):
    comparison = compare(*two_sets)
    text = Page(page(comparison)).text
    for name, each in comparison.scores.items():
        for cell in score_row(name, *each, each.verdict).values():
            assert cell in text
    changes = comparison.changes
    for number in (changes.both_right, changes.both_wrong, changes.num_gained, changes.num_lost):
        assert f"{number:,}" in text
    losers, winners = extremes(comparison)
    assert [each.label for each in losers] == [each.label for each in comparison.classes[: len(losers)]]
    assert [each.label for each in winners] == [each.label for each in comparison.classes[::-1][: len(winners)]]
    for each in (*losers, *winners):
        assert class_row(each, "recall@1")[0] in text
    assert sum("first relevant at rank" in entry for entry in text) == min(40, changes.num_gained) + changes.num_lost
    assert not any("same weights" in entry for entry in text)
    same = compare(two_sets[0], two_sets[0]._replace(path=two_sets[1].path))
    assert any("A and B have the same weights" in entry for entry in Page(page(same)).text)


@pytest.mark.parametrize("known", [True, False])
def test_changed_queries_are_shown_with_their_pictures(known, two_sets, tmp_path):
    for path in two_sets[0].paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), (int(path[:3]), 0, 0)).save(tmp_path / path)
    first, second = two_sets
    comparison = compare(first._replace(image_folder=tmp_path) if known else first, second)
    images = [value for name, value in Page(page(comparison, None if known else tmp_path)).attributes if name == "src"]
    shown = min(40, comparison.changes.num_gained) + min(40, comparison.changes.num_lost)
    assert len(images) == 3 * shown > 30
    assert all(address.startswith("data:image/jpeg") for address in images)
    (tmp_path / first.paths[int(comparison.changes.queries[0])]).unlink()
    assert "no image file" in page(comparison, tmp_path)


def test_titles_of_scores():
    titles = [score_title(name) for name in ("recall@10", "map@r", "map", "precision@1", "fraction_retrieved@2")]
    assert titles == ["R@10", "mAP@R", "map", "precision@1", "fraction_retrieved@2"]
