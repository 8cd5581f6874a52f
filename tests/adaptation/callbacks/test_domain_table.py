import csv

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from lightning_recall.adaptation.callbacks.domain_table import MAX_ROWS, DomainTable, domain_table

SOURCE = torch.tensor([[1200, 0, 0], [1, 3, 0], [0, 0, 0]])
TARGET = torch.tensor([[2, 1, 5], [0, 4, 0], [1, 1, 0]])
BOTH = {"source": SOURCE, "target": TARGET}
NAMES = ["mug", "[red]letter tray", "file cabinet"]


def printed(table, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def rows_of(text):
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") > 2]
    return {row[0]: row[1:] for row in rows}


def test_a_row_for_each_class_and_two_for_all():
    rows = rows_of(printed(domain_table(BOTH, NAMES, "Classes"), width=100))
    assert rows["mug"] == ["1,200", "100.0", "8", "25.0", "file cabinet (62.5 %)"]
    assert rows["[red]letter tray"] == ["4", "75.0", "4", "100.0", ""]
    assert rows["file cabinet"] == ["0", "-", "2", "0.0", "mug (50.0 %)"]
    assert rows["mean"] == ["", "87.5", "", "41.7", ""]
    assert rows["all images"] == ["1,204", "99.9", "14", "42.9", ""]


def test_a_domain_without_labels_has_no_columns():
    rows = rows_of(printed(domain_table({"source": SOURCE}, NAMES, "Classes")))
    assert rows["mug"] == ["1,200", "100.0", ""]
    assert rows["[red]letter tray"] == ["4", "75.0", "mug (25.0 %)"]


def test_long_names_fit_into_80_columns():
    names = ["a" * 60, "name of " * 8, "c"]
    text = printed(domain_table({"source": SOURCE * 1000, "target": TARGET * 1000}, names, "Classes"))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_of_many_classes_those_with_the_lowest_target_accuracy_are_shown():
    right = torch.randperm(345, generator=torch.Generator().manual_seed(0)).clamp(max=300)
    target = torch.diag(right)
    target[:, 0] += 300 - right  # 300 images of each class
    target[0] = 0  # no image
    names = [f"class {number}" for number in range(345)]
    text = printed(domain_table({"source": torch.eye(345).long(), "target": target}, names, "Classes"))
    shown = [name for name in rows_of(text) if name.startswith("class ")]
    worst = {f"class {number}" for number in range(1, 345) if right[number] < MAX_ROWS}
    assert worst <= set(shown)
    assert len(shown) == MAX_ROWS
    assert shown == sorted(shown, key=names.index)
    assert "The 40 of 345 classes with the lowest target accuracy; the CSV file holds all" in " ".join(text.split())


class Scored(LightningModule):
    """A module without our base class."""

    def __init__(self, confusions=BOTH):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.confusions = {}
        self.found = confusions

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    test_step = validation_step

    def on_validation_epoch_end(self):
        self.confusions = self.found

    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


LOADER = DataLoader(torch.zeros(2, 1))


def trainer_of(folder, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callback = DomainTable(kwargs.pop("class_names", None))
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=[callback], **quiet, **kwargs)


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_files_of_validation_and_test(tmp_path, capsys):
    trainer = trainer_of(tmp_path, class_names=NAMES)
    trainer.validate(Scored(), LOADER)
    trainer.test(Scored(), LOADER)
    trainer.test(Scored({"source": SOURCE, "target": torch.zeros(3, 3).long()}), LOADER)
    shown = capsys.readouterr().out
    assert "Classes of the val split, accuracy in %" in shown
    folder = tmp_path / "runs" / "version_0"
    assert {path.name for path in folder.iterdir()} == {
        f"domain_scores_{name}.csv" for name in ("val", "test", "test-1")
    }
    assert str(folder / "domain_scores_val.csv") in shown
    rows = read(folder / "domain_scores_test.csv")
    assert [row["class"] for row in rows] == [*NAMES, "mean over classes", "all images"]
    assert rows[0] == {
        "class": "mug",
        "source_images": "1200",
        "source_accuracy": "1",
        "source_mistaken_for": "",
        "source_mistaken_fraction": "",
        "target_images": "8",
        "target_accuracy": "0.25",
        "target_mistaken_for": "file cabinet",
        "target_mistaken_fraction": "0.625",
    }
    assert rows[2]["source_accuracy"] == ""
    assert [rows[3][f"{domain}_accuracy"] for domain in BOTH] == ["0.875", "0.416667"]
    assert [rows[4][f"{domain}_images"] for domain in BOTH] == ["1204", "14"]
    assert "target_images" not in read(folder / "domain_scores_test-1.csv")[0]


@pytest.mark.parametrize("validates", [True, False])
def test_after_a_training_the_last_validation_is_shown(validates, tmp_path, capsys):
    trainer = trainer_of(tmp_path, max_epochs=2, limit_val_batches=1.0 if validates else 0)
    trainer.fit(Scored(), LOADER, LOADER)
    assert capsys.readouterr().out.count("Classes of the val split") == validates
    assert (tmp_path / "runs/version_0/domain_scores_val.csv").exists() == validates


def test_fast_dev_run_writes_nothing(tmp_path, capsys):
    trainer_of(tmp_path, fast_dev_run=True).test(Scored(), LOADER)
    assert "Classes of the test split" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.csv"))


def test_without_any_label_there_is_no_table(tmp_path, capsys):
    trainer_of(tmp_path).test(Scored({"target": torch.zeros(3, 3).long()}), LOADER)
    assert "Classes" not in capsys.readouterr().out


def test_two_processes_write_one_table(tmp_path):
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", default_root_dir=tmp_path, callbacks=[DomainTable()],
        logger=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.test(Scored(), LOADER)
    assert [path.name for path in tmp_path.rglob("*.csv")] == ["domain_scores_test.csv"]


def test_names_must_fit_the_classes(tmp_path):
    with pytest.raises(ValueError, match="each of the 3 classes, got 2 names"):
        trainer_of(tmp_path, class_names=["a", "b"]).test(Scored(), LOADER)
