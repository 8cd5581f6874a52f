import numpy as np
import pytest
from matplotlib.colors import to_rgb
from sklearn.metrics import jaccard_score

from lightning_recall.callbacks.class_colors import class_colors
from lightning_recall.segmentation.colors import WRONG
from lightning_recall.segmentation.plots import SIDE, SegmentedImage, draw_segmented_images, image_miou

CLASSES = ("sky", "a_road_with $ signs", "tree")


def example(height=30, width=40, name="first.png"):
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 3, (height // 10, width)), 10, 0)
    truth[:10] = -1
    prediction = np.where(rng.random((height, width)) < 0.7, truth.clip(0), 2)
    return SegmentedImage(rng.random((height, width, 3)), truth, prediction, name)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_miou_is_scikit_learns():
    image = example()
    valid = image.truth >= 0
    expected = jaccard_score(image.truth[valid], image.prediction[valid], average="macro")
    assert image_miou(image.truth, image.prediction) == pytest.approx(expected)
    assert np.isnan(image_miou(np.full(3, -1), np.zeros(3, dtype=int)))
    assert image_miou(np.array([0, 0]), np.array([1, 1])) == 0  # class 1 is only predicted


def test_panels_show_the_classes_and_the_errors():
    image = example()
    figure = draw_segmented_images([image], CLASSES)
    shown = [picture.get_array() for picture in figure.axes[0].get_images()]
    assert len(shown) == 4
    colors = class_colors(3) / 255
    valid = image.truth >= 0
    np.testing.assert_allclose(shown[1][valid], colors[image.truth[valid]])
    np.testing.assert_allclose(shown[1][~valid], 1)
    np.testing.assert_allclose(shown[2], colors[image.prediction])
    is_orange = np.isclose(shown[3], to_rgb(WRONG)).all(2)
    assert (is_orange == (valid & (image.truth != image.prediction))).all()
    assert is_orange.any()


def test_captions_name_image_miou_and_share_of_errors():
    image = example()
    valid = image.truth >= 0
    wrong = (image.truth != image.prediction)[valid].mean()
    shown = texts(draw_segmented_images([image], CLASSES))
    miou = f"mIoU {100 * image_miou(image.truth, image.prediction):.0f} %"
    assert {"first.png", miou, f"{100 * wrong:.1f} % wrong"} <= set(shown)


def test_the_legend_names_the_classes_in_the_pictures_only():
    image = example()
    few = SegmentedImage(image.image, np.zeros_like(image.truth), np.zeros_like(image.truth))
    assert {"sky", "ignored", "wrong"} <= set(texts(draw_segmented_images([few], CLASSES)))
    assert "tree" not in texts(draw_segmented_images([few], CLASSES))
    assert set(CLASSES) <= set(texts(draw_segmented_images([image, few], CLASSES)))


def test_images_of_all_sizes_are_drawn(tmp_path):
    large = example(900, 1210)
    assert max(large.shrunk().truth.shape) <= SIDE
    one_pixel = SegmentedImage(np.zeros((1, 1, 3)), np.array([[-1]]), np.array([[40]]), "all ignored")
    figure = draw_segmented_images([large, one_pixel, example(40, 20)], [f"class {n}" for n in range(60)])
    figure.savefig(tmp_path / "figure.png", dpi=30)
    assert "0.0 % wrong" in texts(figure)
