import pytest
from torch import nn

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall._lightning import Trainer
from lightning_recall.data import ImageTransforms
from lightning_recall.datamodules import ImageFolderDataModule, OmniglotDataModule

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Convolutions(nn.Sequential):
    num_features = 6

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class SizedEmbedder(ImageEmbedder):
    """Takes images of 24 pixels only, and records the sizes of the images."""

    image_size = 24

    def __init__(self):
        super().__init__(Convolutions(), embedding_dim=8, norm="batch")
        self.seen = set()

    def check_image_size(self, size):
        if size != 24:
            raise ValueError(f"The backbone takes 24 pixels, got {size}.")

    def forward(self, images):
        self.seen.add(tuple(images.shape[2:]))
        return super().forward(images)


class SizedModule(RetrievalModule):
    @property
    def image_size(self):
        return self.embedder.image_size


def folder(small_data, **transforms):
    root = small_data("image_folder")
    settings = {"batch_size": 4, "samples_per_class": 2, "val_classes": 2, "eval_batch_size": 8}
    return ImageFolderDataModule(str(root), transforms=ImageTransforms(**transforms), **settings)


def fit(module, data):
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(module, data)
    return trainer


def test_training_and_evaluation_use_the_size_of_the_model(small_data):
    module = SizedModule(SizedEmbedder(), RecallAtKLoss())
    data = folder(small_data)
    fit(module, data).test(module, data, verbose=False)
    assert module.embedder.seen == {(24, 24)}
    assert (data.transforms.size, data.transforms.resize) == (24, 27)


def test_without_a_size_of_the_model_images_have_224_pixels(small_data):
    data = folder(small_data)
    data.setup("fit")
    assert data.train_data[0][0].shape == data.test_data[0][0].shape == (3, 224, 224)


def test_data_are_read_again_for_a_model_of_another_size(small_data):
    data = folder(small_data)
    data.setup("fit")
    module = SizedModule(SizedEmbedder(), RecallAtKLoss())
    fit(module, data)
    assert module.embedder.seen == {(24, 24)}


def test_a_size_that_the_model_cannot_take_is_rejected_before_training(small_data):
    module = SizedModule(SizedEmbedder(), RecallAtKLoss())
    with pytest.raises(ValueError, match="The backbone takes 24 pixels, got 32"):
        fit(module, folder(small_data, size=32))
    assert not module.embedder.seen


def test_a_convnet_takes_another_size(small_data):
    module = RetrievalModule(ImageEmbedder(Convolutions(), embedding_dim=8, norm="batch"), RecallAtKLoss())
    module.image_size = 24
    data = folder(small_data, size=16)
    fit(module, data)
    assert data.train_data[0][0].shape == (3, 16, 16)


def test_evaluation_of_the_middle_warns(small_data):
    data = folder(small_data, size=16, resize=64)
    with pytest.warns(UserWarning, match="evaluation would see only the middle of each image; omit resize, or set it"):
        data.setup("fit")


@pytest.mark.parametrize("given", [[], ["--data.transforms.size", "48"], ["--data.transforms", "null"]])
def test_nested_settings_are_set_and_shown_by_the_command(given, command, capsys):
    model = ["--model", "RetrievalModule", "--model.embedder", "ImageEmbedder", "--model.loss", "RecallAtKLoss"]
    with pytest.raises(SystemExit):
        command("fit", *model, "--data", "ImageFolderDataModule", "--data.root", "x", *given, "--print_config")
    printed = capsys.readouterr().out
    shown = [line.strip() for line in printed.splitlines() if line.strip().startswith(("size:", "resize:", "flip:"))]
    assert shown == (
        [] if "null" in given else [f"size: {given[-1] if given else 'null'}", "resize: null", "flip: true"]
    )


def test_defaults_of_a_data_set_stay_when_the_size_is_set(command, capsys):
    model = ["--model", "RetrievalModule", "--model.embedder", "ImageEmbedder", "--model.loss", "RecallAtKLoss"]
    with pytest.raises(SystemExit):
        command("fit", *model, "--data", "OmniglotDataModule", "--data.transforms.size", "28", "--print_config")
    assert "mode: L" in capsys.readouterr().out
    assert OmniglotDataModule(transforms=None).transforms.mode == "L"
    assert OmniglotDataModule().transforms.evaluation_sizes == (32, 32)
