import re
import sys
import types

import pytest
from torch import nn

from lightning_recall.constructor_arguments import record_arguments
from lightning_recall.losses import ContrastiveLoss, MultipleLosses
from lightning_recall.models import ImageEmbedder, SmallConvNet
from lightning_recall.sharing import build, settings_of


@record_arguments
class Weighted(nn.Module):
    def __init__(self, weight, function=None):
        super().__init__()
        self.weight, self.function = weight, function


WEIGHTED = f"{__name__}.Weighted"


@pytest.fixture
def importable(monkeypatch):
    """This file, which pytest imports without a name in sys.modules, can be imported."""
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(Weighted=Weighted))


def test_nested_modules_are_built_again():
    losses = MultipleLosses([ContrastiveLoss(0.8, 0.3), MultipleLosses([ContrastiveLoss()], [2.0])])
    assert settings_of(build(settings_of(losses))) == settings_of(losses)
    assert build(settings_of(losses)).losses[0].negative_margin == 0.3
    embedder = ImageEmbedder(SmallConvNet(3, widths=(8, 8, 16)), [16, 4], mean=[0.1, 0.2, 0.3], norm=None)
    again = build(settings_of(embedder))
    assert settings_of(again) == settings_of(embedder)
    assert str(again) == str(embedder)


def test_weights_are_neither_downloaded_nor_read(tmp_path):
    settings = settings_of(ImageEmbedder("test_vit", 4, pretrained=False))
    assert settings["init_args"]["pretrained"] is False
    settings["init_args"] |= {"pretrained": str(tmp_path / "no.pth"), "backbone_kwargs": {"checkpoint_path": "no.pth"}}
    assert build(settings).num_features == 64
    assert not build(settings).is_pretrained


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "os.system",
            'loss is a os.system, which is not a class of .*, and could run any code: pass loss=.*trust=\\["o',
        ),
        ("torch.nnx.Module", "which is not a class of"),
        ("lightning_recall_evil.Loss", "which is not a class of"),
        ("torch.nn.functional.relu", "loss must be a subclass of torch.nn.Module, but torch.nn.functional.relu is not"),
        ("lightning_recall.models.weights.load_timm", "must be a subclass of torch.nn.Module"),
        ("torchvision.datasets.FakeData", "must be a subclass of torch.nn.Module"),
        ("timm.models.create_model", "must be a subclass of torch.nn.Module"),
        ("lightning_recall.losses.NoLoss", "loss is a lightning_recall.losses.NoLoss, which is not installed here"),
        ("torch.nn.No.Such", "which is not installed here"),
    ],
)
def test_other_classes_are_refused(path, message):
    with pytest.raises(ValueError, match=message):
        build({"class_path": path, "init_args": {}}, name="loss")


def test_a_foreign_class_is_not_reached_through_a_trusted_package(monkeypatch):
    monkeypatch.setattr("lightning_recall.models.Foreign", Weighted, raising=False)
    settings = {"class_path": "lightning_recall.models.Foreign", "init_args": {"weight": 1}}
    with pytest.raises(ValueError, match="is a class of another package"):
        build(settings)
    assert build(settings, ["lightning_recall.models.Foreign"]).weight == 1


def test_nothing_is_imported_for_a_class_that_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "stranger_code.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="could run any code"):
        build({"class_path": "stranger_code.Loss", "init_args": {}})


@pytest.mark.parametrize("trust", [[WEIGHTED], [__name__]])
@pytest.mark.usefixtures("importable")
def test_trusted_classes_are_built(trust):
    settings = settings_of(Weighted(2.0, len))
    assert settings == {"class_path": WEIGHTED, "init_args": {"weight": 2.0, "function": {"code": "len"}}}
    with pytest.raises(ValueError, match=re.escape(f'or, if you trust it, trust=["{WEIGHTED}"]')):
        build(settings)
    with pytest.raises(ValueError, match=r"when loading it\.$"):  # no hint where there is no such argument
        build(settings, None)
    built = build(settings, trust, "loss")
    assert built.weight == 2.0
    assert settings_of(built) == settings
    with pytest.raises(ValueError, match=r"^loss.function was len when .*: pass loss=\.\.\. when loading it\.$"):
        built.function()


def test_unrecorded_modules_and_changed_arguments_are_named():
    embedder = ImageEmbedder(SmallConvNet(), 4)
    embedder.backbone = nn.Flatten()
    with pytest.raises(ValueError, match=r"^embedder.backbone is a torch.nn.Flatten, whose .*: pass embedder=\.\.\. "):
        build(settings_of(embedder), name="embedder")
    with pytest.raises(ValueError, match=r"^loss cannot be built by lightning_recall.losses.ContrastiveLoss of this "):
        build({"class_path": "lightning_recall.losses.ContrastiveLoss", "init_args": {"margin": 1}}, name="loss")
