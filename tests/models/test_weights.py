import pytest
import timm
import torch

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall.models import SmallConvNet


def saved(name, file, **kwargs):
    torch.save(timm.create_model(name, **kwargs).state_dict(), file)
    return str(file)


@pytest.mark.parametrize(
    ("given", "settings", "asked", "message"),
    [
        ("test_resnet", {}, "test_vit", r"\d+ are missing \(cls_token, pos_embed, patch_embed.proj.weight, \.\.\.\)"),
        ("test_vit", {"depth": 5}, "test_vit", r"\d+ are missing \(blocks.5.\S+, blocks.5.\S+, blocks.5.\S+, \.\.\.\)"),
        (
            "test_vit",
            {"depth": 7},
            "test_vit",
            r"\d+ are unexpected \(blocks.6.\S+, blocks.6.\S+, blocks.6.\S+, \.\.\.\)",
        ),
        ("test_vit", {"embed_dim": 32}, "test_vit", r"\d+ are of another shape \(cls_token: \(1, 1, 32\) instead .*"),
    ],
)
def test_weights_of_another_backbone(given, settings, asked, message, tmp_path):
    file = saved(given, tmp_path / "weights.pth", **settings)
    with pytest.raises(ValueError, match=rf"^{file} does not contain the weights of {asked}: {message}\.$"):
        ImageEmbedder(asked, pretrained=file)


@pytest.mark.parametrize("num_classes", [0, 7, 1000])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_a_classifier_of_any_size_is_ignored(name, num_classes, tmp_path):
    file = saved(name, tmp_path / "weights.pth", num_classes=num_classes)
    embedder = ImageEmbedder(name, 8, pretrained=file)
    state = torch.load(file, weights_only=True)
    assert all(torch.equal(p, state[key]) for key, p in embedder.backbone.named_parameters())


def test_positional_embeddings_are_resized(tmp_path):
    file = saved("test_vit", tmp_path / "weights.pth")
    assert ImageEmbedder("test_vit", 8, pretrained=file, backbone_kwargs={"img_size": 64}).image_size == 64


@pytest.mark.parametrize("kind", ["last.ckpt", "module.pth"])
def test_a_checkpoint_of_a_training_is_no_file_of_weights(kind, tmp_path):
    module = RetrievalModule(ImageEmbedder(SmallConvNet(), 8, norm="batch"), RecallAtKLoss())
    file = tmp_path / kind
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": module.loss}  # not only tensors and numbers
    torch.save(checkpoint if kind == "last.ckpt" else module.state_dict(), file)
    message = (
        rf"^{file} is a checkpoint of a training, .* --weights {file}, or call RetrievalModule.load_from_checkpoint"
    )
    with pytest.raises(ValueError, match=message):
        ImageEmbedder("test_resnet", pretrained=str(file))


def test_loading_is_as_before_afterwards(tmp_path):
    with pytest.raises(ValueError, match="does not contain"):
        ImageEmbedder("test_vit", pretrained=saved("test_resnet", tmp_path / "weights.pth"))
    found = torch.nn.Linear(2, 2).load_state_dict({}, strict=False)  # not checked
    assert found.missing_keys == ["weight", "bias"]
