import os
import pickle

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from lightning_recall import RecallAtKLoss, RetrievalEvaluation, RetrievalModule
from lightning_recall.callbacks import RetrievedImages
from lightning_recall.data import ImageTransforms
from lightning_recall.datamodules import RevisitedDataModule


def set_up(root, **kwargs):
    data = RevisitedDataModule(str(root), **kwargs)
    data.setup("test")
    return data


@pytest.mark.parametrize("distractors", [False, True])
def test_queries_are_cropped_and_images_keep_their_aspect_ratio(distractors, small_data):
    transforms = ImageTransforms(longest_side=30)
    test = set_up(small_data("revisited"), distractors=distractors, transforms=transforms).test_data
    assert len(test) == 8 + 2 * distractors
    assert test.is_query.tolist() == [True] * 2 + [False] * (6 + 2 * distractors)
    assert test[0][0].shape == (3, 15, 10)  # a box of 21 x 30 pixels, at half the size
    assert test[1][0].shape == test[2][0].shape == (3, 20, 30)
    assert test.ground_truth == [([0], [2], [4]), ([], [1, 3], [])]
    if distractors:
        assert test.path(8).endswith("revisitop1m/jpg/a/b.jpg")


class Corners(torch.nn.Module):
    def forward(self, images):
        return images[:, :, :8, :8].float().flatten(1)


def test_scores_and_pictures(small_data, tmp_path):
    callbacks = [RetrievalEvaluation(ks=(1, 5)), RetrievedImages()]
    settings = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, **settings)
    (scores,) = trainer.test(
        RetrievalModule(Corners(), RecallAtKLoss()), set_up(small_data("revisited")), verbose=False
    )
    names = {f"test/{name}/{score}" for name in ("easy", "medium", "hard") for score in ("map", "mp@1", "mp@5")}
    assert set(scores) == names
    assert all(0 <= score <= 1 for score in scores.values())
    assert (tmp_path / "runs/version_0/retrieved_images.png").exists()


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    "truth", [{"gnd": Harm()}, {"gnd": []}, [1], {"imlist": [], "qimlist": [], "gnd": [{"bbx": []}]}]
)
def test_a_ground_truth_with_code_or_missing_fields_is_rejected(truth, small_data, in_tmp_path):
    root = small_data("revisited")
    (root / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(ValueError, match=r"gnd_roxford5k\.pkl (cannot be read as|is not) a ground truth"):
        set_up(root)
    assert not (in_tmp_path / "harm").exists()


@pytest.mark.parametrize("protocol", [2, 5])
def test_numpy_arrays_and_scalars_are_accepted(protocol, small_data):
    root = small_data("revisited")
    file = root / "roxford5k" / "gnd_roxford5k.pkl"
    truth = pickle.loads(file.read_bytes())  # written by this test
    truth["gnd"][0] |= {"easy": np.array([0]), "bbx": np.array([5.2, 3, 25.9, 33]), "hard": [np.int64(2)]}
    file.write_bytes(pickle.dumps(truth, protocol=protocol))
    assert [list(map(int, part)) for part in set_up(root).test_data.ground_truth[0]] == [[0], [2], [4]]


def test_missing_files_and_training_images_are_errors(small_data):
    root = small_data("revisited")
    with pytest.raises(ValueError, match=r"gnd_rparis6k\.pkl does not exist, .* revisitop"):
        set_up(root, benchmark="rparis6k")
    data = set_up(root)
    with pytest.raises(ValueError, match="RevisitedDataModule has no training images"):
        data.train_dataloader()


def test_duplicates_and_labels_are_ignored_with_a_ground_truth(small_data):
    root = small_data("revisited")
    folder = root / "roxford5k" / "jpg"
    (folder / "image_1.jpg").write_bytes((folder / "image_0.jpg").read_bytes())
    (folder / "image_3.jpg").unlink()
    (folder / "image_3.jpg").symlink_to(folder / "image_2.jpg")
    data = set_up(root).test_data
    assert len(data) == len(data.is_query) == 8
    assert data.ground_truth[1] == ([], [1, 3], [])
