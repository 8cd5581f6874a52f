import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from pytorch_lightning import Trainer

from lightning_recall import RecallAtKLoss, RetrievalDataModule, RetrievalModule
from lightning_recall.callbacks import RetrievalEvaluation
from lightning_recall.data import ImageFiles, ImagesInMemory, ImageTransforms

IMAGES = ImageTransforms(size=8, resize=8)
COLUMNS = {
    "super_labels": [7, 7, 8, 8, 9, 9],
    "is_query": [True, False, True, False, True, False],
    "is_gallery": [False, True, True, True, True, True],
    "groups": [10, 11, 12, 13, 14, 15],
}
LABELS = np.array([0, 0, 1, 1, 2, 2])


def image_files():
    return ImageFiles("root", [f"{i}.png" for i in range(6)], LABELS, boxes=np.arange(24).reshape(6, 4), **COLUMNS)


def in_memory():
    data = ImagesInMemory(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), LABELS)
    vars(data).update({name: np.array(values) for name, values in COLUMNS.items()})
    return data


@pytest.mark.parametrize("make", [image_files, in_memory])
@pytest.mark.parametrize(
    "indices", [[4, 1, 2], np.array([4, 1, 2]), torch.tensor([4, 1, 2]), LABELS != 1, slice(1, 5), slice(None)], ids=str
)
def test_a_selection_has_its_entries_of_every_column(make, indices):
    data = make()
    numbers = np.arange(6)[indices if not isinstance(indices, torch.Tensor) else indices.numpy()].tolist()
    chosen = data.select(indices)
    assert len(chosen) == len(numbers)
    assert chosen.labels.tolist() == [LABELS[i] for i in numbers]
    for name, values in COLUMNS.items():
        assert getattr(chosen, name).tolist() == [values[i] for i in numbers]
        assert len(getattr(data, name)) == 6
    if make is image_files:
        assert [chosen.path(i) for i in range(len(numbers))] == [f"root/{i}.png" for i in numbers]
        assert chosen.boxes[:, 0].tolist() == [4 * i for i in numbers]
    else:
        assert chosen.images.ravel().tolist() == numbers


@pytest.mark.parametrize("make", [image_files, in_memory])
@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_attributes_of_a_subclass_are_selected_or_rejected(make, convert):
    data = make()
    data.cameras = convert([5, 6, 7, 8, 9, 9])
    kind = type(data).__name__
    with pytest.raises(ValueError, match=rf"{kind}\.cameras has 6 entries, .* Add 'cameras' to `columns`"):
        data.select([0, 1])
    own = type("Own", (type(data),), {"columns": (*type(data).columns, "cameras")})
    data.__class__ = own
    data.names = ("a", "b", "c")
    chosen = data.select([3, 0])
    assert type(chosen) is own
    assert (np.asarray(chosen.cameras).tolist(), chosen.names) == ([8, 5], ("a", "b", "c"))
    data.groups = [1, 2, 3]
    with pytest.raises(ValueError, match=r"Own\.groups has 3 entries, but the data set has 6 images"):
        data.select(slice(2))


def test_a_selection_has_its_own_transform_and_mask_of_unreadable_files(tmp_path):
    draw(tmp_path / "0.png", size=(30, 30))
    data = ImageFiles(tmp_path, ["0.png", "none.png", "none.png"], [0, 0, 0], transforms=IMAGES)
    with pytest.warns(UserWarning, match="Cannot read"):
        black = data[1][0]
    assert len(black) == len(data) == 3  # 3 channels: an image is not a column
    training = data.select([0, 1], training=True)
    assert (training.training, training.unreadable.tolist(), data.unreadable.tolist()) == (
        True,
        [False, False],
        [False, True, False],
    )
    assert training.unreadable.is_shared()
    assert type(training.transform) is not type(data.transform) or str(training.transform) != str(data.transform)


def test_a_data_set_with_a_ground_truth_has_no_subsets():
    data = image_files()
    data.ground_truth = [([1], [], [])]
    with pytest.raises(ValueError, match="ImageFiles has a ground_truth of gallery indices"):
        data.select([0])


class Pixels(torch.nn.Module):
    def forward(self, images):
        return images.float().flatten(1)


def camera_images(root, lines):
    """A data module whose `read` sets `groups`; a line is a file, its hue (degrees from red to green), label and
    camera.
    """
    for name, hue, *_ in lines:
        red, green = (round(250 * part(np.deg2rad(hue))) for part in (np.cos, np.sin))
        Image.new("RGB", (8, 8), (red, green, 0)).save(root / f"{name}.png")
    data = RetrievalDataModule(val_classes=0)

    def read():
        test = ImageFiles(root, [f"{name}.png" for name, *_ in lines], [line[2] for line in lines], transforms=IMAGES)
        test.groups = [line[3] for line in lines]
        return {"test": test}

    data.read = read
    return data


def recall(data):
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", callbacks=[RetrievalEvaluation((1,))], **settings)
    (scores,) = trainer.test(RetrievalModule(Pixels(), RecallAtKLoss()), data, verbose=False)
    return scores["test/recall@1"]


LINES = [("a", 10, 0, 1), ("b", 12, 0, 1), ("d", 20, 1, 1), ("c", 50, 0, 2), ("f", 55, 1, 2), ("e", 80, 1, 2)]


def test_dropping_a_repeated_file_keeps_the_cameras_of_the_others(tmp_path):
    """By hand: a and b ignore each other and retrieve d, d retrieves b, c f, f c; e ignores f and retrieves c.

    All of these have other labels: 0 of 6. Without cameras, a, b and e are correct: 3 of 6.
    """
    data = camera_images(tmp_path, [*LINES, LINES[0]])
    with pytest.warns(UserWarning, match=r"test: 1 of 7 images is dropped as a duplicate .*a\.png is listed twice\."):
        assert recall(data) == 0
    assert data.test_data.groups.tolist() == [1, 1, 1, 2, 2, 2]
    del data.test_data.groups
    assert recall(data) == 0.5


def test_one_file_with_two_cameras_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png is listed twice, but with the groups 1 and 2: keep one of them"):
        camera_images(tmp_path, [*LINES, ("a", 10, 0, 2)]).setup("test")


def test_validation_classes_keep_their_columns():
    data = RetrievalDataModule(val_classes=1, seed=3)
    data.read = lambda: {"train": in_memory()}
    data.check_duplicates = False
    data.setup("validate")
    (label,) = set(data.val_data.labels.tolist())
    indices = np.flatnonzero(label == LABELS).tolist()
    for name, values in COLUMNS.items():
        assert getattr(data.val_data, name).tolist() == [values[i] for i in indices]
