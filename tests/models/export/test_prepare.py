import pytest
import torch
from exported_networks import make_embedder
from torch import nn

from lightning_recall.models import LoRAEmbedder
from lightning_recall.models.export.prepare import example_images, new_path, prepared, unfinished


def test_the_copy_is_plain_and_in_evaluation_mode():
    pytest.importorskip("peft")  # an extra
    lora = LoRAEmbedder(make_embedder("vit")[0], rank=2).train().double()
    copied = prepared(lora)
    assert not copied.training
    assert not [name for name, _ in copied.named_parameters() if "lora" in name]
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.float32}
    assert lora.training
    assert {parameter.dtype for parameter in lora.parameters()} == {torch.float64}
    half = prepared(nn.Linear(4, 2), half=True)
    assert half(torch.ones(3, 4).half()).dtype == torch.float32


def test_example_images_are_smooth_and_noisy():
    images = example_images((40, 60), 3)
    assert (images.shape, images.dtype) == ((7, 3, 40, 60), torch.uint8)
    steps = images.float().diff(dim=3).abs().mean((1, 2, 3))
    assert steps[:4].max() < 20 < 80 < steps[4:].min()
    assert torch.equal(images, example_images((40, 60), 3))
    for size, channels in ((0, 3), (32, 0), (32.5, 3)):
        with pytest.raises(ValueError, match=r"^(image_size|channels) must be"):
            example_images((size, size), channels)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "a.onnx").write_text("mine")
    (tmp_path / "b.bin").write_text("mine")
    for name, suffix, file in (("a.onnx", ".onnx", "a.onnx"), ("b.xml", ".xml", "b.bin")):
        with pytest.raises(ValueError, match=rf"{file} exists, and is not overwritten: choose another name"):
            new_path(tmp_path / name, suffix)
    (tmp_path / "c.onnx").symlink_to(tmp_path / "later")
    with pytest.raises(ValueError, match=r"c\.onnx exists, and is not overwritten"):
        new_path(tmp_path / "c.onnx", ".onnx")
    with pytest.raises(ValueError, match=r"must end with \.onnx, got model\.pb"):
        new_path("model.pb", ".onnx")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*none: create it first"):
        new_path(tmp_path / "none" / "a.onnx", ".onnx")
    assert new_path(tmp_path / "b.onnx", ".onnx") == tmp_path / "b.onnx"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.onnx"

    def write():
        with unfinished(path) as file:
            file.write_text("new")
            path.write_text("mine")

    with pytest.raises(ValueError, match="exists, and is not overwritten"):
        write()
    assert path.read_text() == "mine"
    assert [found.name for found in tmp_path.iterdir()] == ["a.onnx"]
