import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import EvaluationReport, RetrievalEvaluation
from lightning_recall.callbacks.evaluation_report import thumbnail, thumbnail_side, to_data_url

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Flatten(pl.LightningModule):
    def forward(self, images):
        return images.float().flatten(1)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass


class Page(html.parser.HTMLParser):
    """The addresses that a page loads, and its data."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open, self.data = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.open.append(dict(attrs).get("id"))

    def handle_data(self, data):
        if self.open and self.open[-1] == "data":
            self.data = self.data or data


class Named(TensorDataset):
    """Images with names of classes and files."""

    class_names = tuple(f"Species <{letter}> of the North" for letter in "abcdefgh")
    paths = np.array([f"{i // 3}/picture{i}.jpg".encode() for i in range(24)])


def report(tmp_path, channels=3, size=40, name='<b>a</b> & "b"', kind=TensorDataset):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (24, channels, size, size + 8), generator=generator).to(torch.uint8)
    loader = DataLoader(kind(images, torch.arange(24) // 3), batch_size=10)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[EvaluationReport(num_queries=4, num_neighbors=3), RetrievalEvaluation()],
    )  # fmt: skip
    results = trainer.test(Flatten(), {name: loader, "second": loader}, verbose=False)
    return (tmp_path / "runs/version_0/report.html").read_text(), {
        key: value for part in results for key, value in part.items()
    }


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 224)])
def test_the_page_holds_scores_images_and_queries(channels, size, tmp_path, capsys):
    text, scores = report(tmp_path, channels, size)
    assert str(tmp_path / "runs/version_0/report.html") in capsys.readouterr().out
    page = Page(text)
    assert page.addresses  # charts
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "<b>a</b>" not in text  # names are text, not markup
    assert text.count("&lt;b&gt;a&lt;/b&gt; &amp; ") == 3  # in the table, above the charts, among the options
    for value in scores.values():
        assert f"<td>{100 * value:.2f}</td>" in text
    data = json.loads(page.data)
    assert len(data["queries"]) == 2 * 2 * 4
    assert {(q["set"], q["choice"]) for q in data["queries"]} == {(s, c) for s in (0, 1) for c in ("worst", "random")}
    for query in data["queries"]:
        assert len(query["neighbors"]) == len(query["similarities"]) == 3
        assert query["relevant"] == [n // 3 == query["image"] // 3 for n in query["neighbors"]]
        assert query["label"] == str(query["image"] // 3)
        assert (query["rank"] <= 3) == any(query["relevant"])
        assert all(f"{query['set']}/{row}" in data["images"] for row in (query["image"], *query["neighbors"]))
    worst = [q["rank"] for q in data["queries"] if q["choice"] == "worst" and q["set"] == 0]
    assert worst == sorted(worst, reverse=True)


SCRIPT = """
<script>
const look = () => ({
  count: document.getElementById("count").textContent,
  rows: document.querySelectorAll("#queries .row").length,
  right: document.querySelectorAll("#queries figure.relevant").length,
  broken: [...document.images].filter(image => image.complete && image.naturalWidth === 0).length,
});
const set = (name, value) => {
  form.elements[name].value = value;
  form.dispatchEvent(new Event("input", {bubbles: true}));
};
window.addEventListener("load", () => {
  const seen = {all: look()};
  set("label", data.queries[0].label);
  seen.label = look();
  set("label", "THE nor");
  seen.name = look();
  set("label", "");
  set("rank", "4");
  seen.rank = look();
  set("rank", "1");
  set("choice", "random");
  set("set", "1");
  seen.second = look();
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
window.addEventListener("error", event => document.body.append("ERR" + "OR " + event.message));
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome: apt install chromium")
def test_a_browser_shows_and_filters_the_page(tmp_path):
    text, _ = report(tmp_path, kind=Named)
    data = json.loads(Page(text).data)
    (tmp_path / "driven.html").write_text(text.replace("</body>", SCRIPT + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *flags, profile, (tmp_path / "driven.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "ERROR" not in shown
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', shown)[1])
    worst, second = (
        [q for q in data["queries"] if (q["set"], q["choice"]) == key] for key in ((0, "worst"), (1, "random"))
    )
    assert seen["all"] == {
        "count": "4 of 4 queries",
        "rows": 4,
        "right": sum(sum(q["relevant"]) for q in worst),
        "broken": 0,
    }
    assert seen["label"]["rows"] == sum(q["label"] == worst[0]["label"] for q in worst)
    assert seen["name"]["rows"] == 4
    assert seen["rank"]["count"] == f"{sum(q['rank'] >= 4 for q in worst)} of 4 queries"
    assert seen["second"]["right"] == sum(sum(q["relevant"]) for q in second)


def test_names_of_classes_and_files_are_in_the_page(tmp_path):
    data = json.loads(Page(report(tmp_path, kind=Named)[0]).data)
    assert len(data["items"]) > 8
    for key, item in data["items"].items():
        index = int(key.split("/")[1])
        assert item == {
            "label": str(index // 3),
            "class": Named.class_names[index // 3],
            "file": f"{index // 3}/picture{index}.jpg",
        }
    assert set(data["items"]) == set(data["images"])


def test_without_names_the_page_shows_labels(tmp_path):
    text, _ = report(tmp_path)
    assert "its class and its file" not in text
    assert all(item["class"] == item["file"] == "" for item in json.loads(Page(text).data)["items"].values())


@pytest.mark.parametrize(("size", "number", "side"), [(512, 10, 224), (512, 10_000, 96), (40, 10, 224)])
def test_thumbnails_are_as_large_as_the_page_allows(size, number, side):
    noise = np.random.default_rng(0).random((3, size, size, 3))
    assert thumbnail_side(list(noise), number) == side
    total = number * len(to_data_url(thumbnail(noise[0], side)))
    assert total < 8_000_000 or side == 96


def test_the_limit_is_on_the_size_of_the_page():
    noise = np.random.default_rng(0).random((2, 300, 300, 3))
    of_160 = len(to_data_url(thumbnail(noise[0], 160)))
    number = 8_000_000 // of_160 - 5
    assert thumbnail_side(list(noise), number) == 160


def test_thumbnails_are_png_or_jpeg_whichever_is_smaller():
    flat, noise = np.zeros((32, 32)), np.random.default_rng(0).random((160, 160, 3))
    assert to_data_url(thumbnail(flat, 96)).startswith("data:image/png;")
    assert to_data_url(thumbnail(noise, 160)).startswith("data:image/jpeg;")


def test_thumbnails_are_small_and_keep_their_aspect_ratio():
    image = thumbnail(np.ones((224, 448, 3)), 96)
    assert image.size == (96, 48)
    assert thumbnail(np.ones((32, 32)), 96).size == (32, 32)
    assert isinstance(image, Image.Image)


@pytest.mark.parametrize("arguments", [{"num_queries": 0}, {"num_neighbors": 0}])
def test_numbers_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        EvaluationReport(**arguments)
