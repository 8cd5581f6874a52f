import pytest

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall._lightning import Trainer
from lightning_recall.data import ImageTransforms
from lightning_recall.datamodules import ImageFolderDataModule, OmniglotDataModule

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Sized(RetrievalModule):
    """A transformer that takes images of 32 pixels only, and records the sizes of the images."""

    def __init__(self, backbone="test_vit"):
        kwargs = {"img_size": 32, "dynamic_img_size": False} if backbone == "test_vit" else None
        super().__init__(ImageEmbedder(backbone, 8, pretrained=False, backbone_kwargs=kwargs), RecallAtKLoss())
        self.seen = set()
        self.embedder.register_forward_pre_hook(lambda _, inputs: self.seen.add(tuple(inputs[0].shape[2:])))


def folder(small_data, **transforms):
    root = small_data("image_folder")
    settings = {"batch_size": 4, "samples_per_class": 2, "val_classes": 2, "eval_batch_size": 8}
    return ImageFolderDataModule(str(root), transforms=ImageTransforms(**transforms), **settings)


def fit(module, data):
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(module, data)
    return trainer


def test_training_and_evaluation_use_the_size_of_the_model(small_data):
    module = Sized()
    data = folder(small_data)
    fit(module, data).test(module, data, verbose=False)
    assert module.seen == {(32, 32)}
    assert (data.transforms.size, data.transforms.resize) == (32, 37)


def test_without_a_size_of_the_model_images_have_224_pixels(small_data):
    data = folder(small_data)
    data.setup("fit")
    assert data.train_data[0][0].shape == data.test_data[0][0].shape == (3, 224, 224)


def test_data_are_read_again_for_a_model_of_another_size(small_data):
    data = folder(small_data)
    data.setup("fit")
    module = Sized()
    fit(module, data)
    assert module.seen == {(32, 32)}


def test_a_size_that_the_model_cannot_take_is_rejected_before_training(small_data):
    module = Sized()
    with pytest.raises(
        ValueError, match=r"VisionTransformer does not accept images of 48 x 48 .* use 32 x 32, or, .*img_size: 48"
    ):
        fit(module, folder(small_data, size=48))
    assert not module.seen


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_a_convnet_takes_another_size(small_data, backbone):
    module, data = Sized(backbone), folder(small_data, size=48)
    assert module.image_size == 160
    fit(module, data).test(module, data, verbose=False)
    assert module.seen == {(48, 48)}


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
