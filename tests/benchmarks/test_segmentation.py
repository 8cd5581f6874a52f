import csv
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from lightning_recall.benchmarks import segmentation
from lightning_recall.benchmarks.segmentation import BAND, boundary_band, camvid, parser, settings_of
from lightning_recall.segmentation.data import IGNORED_PIXEL


@pytest.fixture
def options(tmp_path):
    """Small scenes in the layout of CamVid, and the random weights of a small network."""
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for folder in (split, f"{split}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        for number in range(4):
            mask = np.repeat(np.repeat(draw.integers(0, 12, (3, 4)), 12, 0), 12, 1).astype(np.uint8)
            pixels = 20 * mask[..., None] + draw.normal(0, 5, (36, 48, 3))
            Image.fromarray(mask).save(tmp_path / "camvid" / f"{split}annot" / f"{number}.png")
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "camvid" / split / f"{number}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    camvid.cache_clear()
    files = ["--camvid", str(tmp_path / "camvid"), "--weights", str(tmp_path / "weights.pth")]
    training = ["--backbone", "test_efficientnet", "--steps", "2", "--batch-size", "2", "--crop", "24x32"]
    return [*files, *training, "--methods", "cross-entropy", "recall", "--output", str(tmp_path / "out")]


def rows_in(tmp_path):
    with (tmp_path / "out" / "segmentation.csv").open() as file:
        return list(csv.DictReader(file))


def test_chooses_a_rate_then_tests_and_continues(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(ValueError, match=r"No rate of 'cross-entropy' has been validated: run with --choose first"):
        segmentation.main(options)
    hidden = (tmp_path / "camvid" / "testannot").rename(tmp_path / "hidden")
    broken = tmp_path / "camvid" / "testannot"
    broken.mkdir()
    for file in hidden.iterdir():
        (broken / file.name).write_bytes(b"")  # --choose does not read it
    segmentation.main([*options, "--choose", "--rates", "0.001", "0.1"])
    shutil.rmtree(broken)
    hidden.rename(broken)
    chosen = rows_in(tmp_path)
    assert [(row["method"], row["rate"], row["split"]) for row in chosen] == [
        (method, rate, "val") for method in ("cross-entropy", "recall") for rate in ("0.001", "0.1")
    ]
    segmentation.main([*options, "--seeds", "0", "1"])
    rows = rows_in(tmp_path)[4:]
    assert [(row["method"], row["seed"], row["split"]) for row in rows] == [
        (method, seed, "test") for seed in ("0", "1") for method in ("cross-entropy", "recall")
    ]
    for row in rows:
        tried = [other for other in chosen if other["method"] == row["method"]]
        assert row["rate"] == max(tried, key=lambda other: float(other["miou"]))["rate"]
    assert len({row["pixel_accuracy"] for row in rows}) > 1
    assert "recall" in capsys.readouterr().out
    monkeypatch.setattr(segmentation, "run", lambda _: pytest.fail("runs are not repeated"))
    segmentation.main([*options, "--seeds", "0", "1"])
    plots = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert plots == ["segmentation_test_pretrained.png", "segmentation_validation_pretrained.png"]


def test_settings_are_complete_rounds_over_the_methods(options):
    given = parser().parse_args([*options, "--rates", "0.1", "--seeds", "3", "5"])
    settings = settings_of(given, [])
    assert [(setting.seed, setting.method) for setting in settings] == [
        (seed, method) for seed in (3, 5) for method in ("cross-entropy", "recall")
    ]
    given.choose = True
    assert {(setting.seed, setting.split) for setting in settings_of(given, [])} == {(3, "val")}


def test_boundary_band_is_where_another_class_is_near():
    torch.manual_seed(0)
    masks = torch.randint(0, 2, (2, 12, 14)).repeat_interleave(4, 2)
    masks[:, :3, :20] = IGNORED_PIXEL
    band = boundary_band(masks)
    for image, row, column in np.ndindex(*masks.shape):
        window = masks[image, max(0, row - BAND) : row + BAND + 1, max(0, column - BAND) : column + BAND + 1]
        classes = set(window.flatten().tolist()) - {IGNORED_PIXEL}
        expected = len(classes) > 1 and masks[image, row, column] != IGNORED_PIXEL
        assert band[image, row, column] == expected


def test_scores_are_percent_of_whole_images(options):
    """A network that predicts one class everywhere has its pixel fraction as accuracy."""
    given = parser().parse_args([*options, "--rates", "0.1"])
    setting = settings_of(given, [])[0]
    data, counts = camvid(setting.data, setting.batch, setting.crop, setting.scale)

    class Constant(torch.nn.Module):
        num_classes, class_names = data.num_classes, data.class_names

        def forward(self, images):
            logits = torch.zeros(len(images), self.num_classes, *images.shape[-2:])
            logits[:, 3] = 1
            return logits

    scores = segmentation.score(Constant(), data.test_dataloader(), counts.rarest(3))
    masks = torch.stack([mask for _, mask in data.test_data])
    fraction = ((masks == 3).sum() / (masks != IGNORED_PIXEL).sum()).item()
    assert scores["pixel_accuracy"] == pytest.approx(100 * fraction, abs=0.01)
    assert scores["iou_road"] == scores["pixel_accuracy"]
    occurring = len(set(masks.flatten().tolist()) - {IGNORED_PIXEL})
    assert scores["mean_accuracy"] == pytest.approx(100 / occurring, abs=0.01)
    near = masks[boundary_band(masks)]
    expected = 100 * (near == 3).double().mean().item() / len(near.unique())
    assert scores["boundary_miou"] == pytest.approx(expected, abs=0.01)
    assert abs(scores["boundary_miou"] - scores["miou"]) > 0.01
