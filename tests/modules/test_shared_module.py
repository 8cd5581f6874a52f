import json
import pickletools
import re
import shutil
import zipfile
from functools import partial

import pytest
import torch
from conftest import draw
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from safetensors import safe_open
from torch import nn

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule, SimilarityMixup
from lightning_recall._lightning import Trainer
from lightning_recall.data import ImageTransforms
from lightning_recall.losses import ContrastiveLoss, CrossBatchMemory, MultipleLosses, NormalizedSoftmaxLoss
from lightning_recall.losses.base import RetrievalLoss
from lightning_recall.models import LoRAEmbedder, MultiScale, SmallConvNet

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
FILES = ["README.md", "config.json", "model.safetensors"]


class OwnEmbedder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(12, dim)

    def forward(self, images):
        return nn.functional.normalize(self.linear(images.flatten(1).float()), dim=1)


class OwnLoss(RetrievalLoss):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def compute(self, embeddings, labels):
        return self.scale * embeddings.sum()


class OwnModule(RetrievalModule):
    def __init__(self, width, **kwargs):
        super().__init__(ImageEmbedder(SmallConvNet(), width), RecallAtKLoss(), **kwargs)


def small(**arguments):
    return RetrievalModule(ImageEmbedder(SmallConvNet(widths=(4, 4, 8)), 8, norm="batch"), RecallAtKLoss(), **arguments)


def images(size, channels=3):
    return torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)


def lora():
    pytest.importorskip("peft")  # an extra
    return LoRAEmbedder(ImageEmbedder("test_vit", 8, pretrained=False), rank=2, target_modules=["qkv"])


def swin():
    kwargs = {"img_size": 64, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    return ImageEmbedder("swin_tiny_patch4_window7_224", 8, pretrained=False, backbone_kwargs=kwargs)


def frozen_convnet():
    embedder = ImageEmbedder("test_resnet", None, pretrained=False, freeze_batch_norm=True, channels_last=True)
    nn.init.normal_(embedder.backbone.bn1.running_mean)
    return embedder


MODULES = {
    "small": (lambda: small(mixup=SimilarityMixup(seed=3)), (32, 1)),
    "lora": (lambda: RetrievalModule(lora(), NormalizedSoftmaxLoss(5, 8)), (160, 3)),
    "non-persistent buffers": (lambda: RetrievalModule(swin(), RecallAtKLoss()), (64, 3)),
    "frozen BatchNorm": (
        lambda: RetrievalModule(
            frozen_convnet(),
            MultipleLosses([NormalizedSoftmaxLoss(3, 128), CrossBatchMemory(ContrastiveLoss(), 4, 128)], [1, 2]),
            test_time_augmentation=MultiScale((1.0, 0.5), flip=False),
        ),
        (64, 3),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_a_model_is_equal_to_the_bit_after_loading(name, dtype, tmp_path, monkeypatch):
    make, (size, channels) = MODULES[name]
    module, batch = make().to(dtype).eval(), images(size, channels)
    assert module.save_pretrained(tmp_path / "model") is None
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    monkeypatch.setattr("timm.models._builder.load_pretrained", None)  # would download
    before = torch.random.get_rng_state()
    again = RetrievalModule.from_pretrained(tmp_path / "model")
    torch.random.set_rng_state(before)
    assert not again.training
    expected, state = module.state_dict(), again.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
        assert state[key].dtype == value.dtype
    buffers = dict(module.named_buffers())
    assert {key: value.dtype for key, value in again.named_buffers()} == {k: v.dtype for k, v in buffers.items()}
    assert all(torch.equal(value, buffers[key]) for key, value in again.named_buffers())
    assert torch.equal(again.predict_step([batch, None], 0), module.predict_step([batch, None], 0))
    embedder, loaded = module.embedder, again.embedder
    assert loaded.freeze_batch_norm == embedder.freeze_batch_norm
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in module.parameters()]
    strides = [p.stride() for p in module.parameters()]
    assert [p.stride() for p in again.parameters()] == strides  # channels_last
    again.save_pretrained(tmp_path / "again")
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()


def test_tied_weights_are_saved_once(tmp_path):
    module = small()
    first, second = module.embedder.backbone.layers[4], nn.Conv2d(4, 4, 3, padding=1)
    module.embedder.backbone.layers[4].weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    module.loss = OwnLoss(2)
    module.loss.register_parameter("tied", first.weight)
    module.loss.register_buffer("part", first.weight.detach()[:2])  # a view
    module.loss.register_buffer("flat", first.weight.detach().view(-1))  # of the same size
    module.loss.register_buffer("turned", first.weight.detach().transpose(0, 1))
    del second
    module.save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"loss.tied": "embedder.backbone.layers.4.weight"}
    loss = OwnLoss(1)
    loss.register_parameter("tied", nn.Parameter(torch.zeros(4, 4, 3, 3)))
    loss.register_buffer("part", torch.zeros(2, 4, 3, 3))
    loss.register_buffer("flat", torch.zeros(144))
    loss.register_buffer("turned", torch.zeros(4, 4, 3, 3))
    again = RetrievalModule.from_pretrained(tmp_path / "model", loss=loss)
    for key, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_preprocessing_and_threshold_are_saved(tmp_path):
    module = small()
    module.image_transforms = ImageTransforms(size=32, resize=40, mode="L")
    module.similarity_threshold = {"similarity": 0.25, "false_accept_rate": 0.01, "split": "val"}
    module.save_pretrained(tmp_path / "model")
    again = RetrievalModule.from_pretrained(tmp_path / "model", map_location="meta")
    assert again.device.type == "meta"
    assert again.similarity_threshold == module.similarity_threshold
    draw(tmp_path / "a.jpg", size=(90, 60))
    assert torch.equal(again.preprocess(tmp_path / "a.jpg"), module.preprocess(tmp_path / "a.jpg"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'embedding = module(module.preprocess("photo.jpg")[None])\n```' in card
    assert "| resize | 40 |" in card
    assert "| similarity | 0.25 |" in card
    module.image_transforms = ImageTransforms(eval_transform=nn.Identity())
    module.save_pretrained(tmp_path / "custom")
    with pytest.raises(ValueError, match="its eval_transform Identity is code"):
        RetrievalModule.from_pretrained(tmp_path / "custom").preprocess(tmp_path / "a.jpg")


def test_parts_of_others_are_passed_or_trusted(tmp_path):
    embedder = OwnEmbedder(3)
    RetrievalModule(embedder, OwnLoss(7)).save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'from_pretrained("FOLDER", embedder=..., loss=...)' in card
    load = partial(RetrievalModule.from_pretrained, tmp_path / "model")
    with pytest.raises(ValueError, match=r"^embedder is a .*OwnEmbedder, whose constructor .*: pass embedder=\.\.\."):
        load(loss=OwnLoss(1))
    with pytest.raises(ValueError, match=r"^loss is a .*OwnLoss, which is not a class of .*: pass loss=\.\.\. "):
        load(embedder=OwnEmbedder(3))
    again = load(embedder=OwnEmbedder(3), loss=OwnLoss(1))
    assert torch.equal(again.embedder.linear.weight, embedder.linear.weight)
    assert again.loss.scale == 7
    with pytest.raises(
        ValueError, match=r"do not belong to the model .*: 2 of another shape \(embedder.linear.bias: \(3,\) inst"
    ):
        load(embedder=OwnEmbedder(4), loss=OwnLoss(1))
    with pytest.raises(ValueError, match=r": 1 unexpected \(loss.scale\)\.$"):
        load(embedder=OwnEmbedder(3), loss=RecallAtKLoss())
    with pytest.raises(ValueError, match=r"cannot be built by RetrievalModule of this version: .*'losses'"):
        load(embedder=OwnEmbedder(3), loss=OwnLoss(1), losses=3)


def test_a_part_that_was_replaced_is_noticed(tmp_path):
    module = small()
    module.embedder.projection = nn.Linear(32, 5)
    before = torch.random.get_rng_state()
    with pytest.warns(
        UserWarning, match=r"build another model, .*: 7 missing .*; 2 unexpected .* Pass the part to from"
    ):
        module.save_pretrained(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="do not belong to the model that its settings describe"):
        RetrievalModule.from_pretrained(tmp_path / "model")
    embedder = small().embedder
    embedder.projection = nn.Linear(32, 5)
    again = RetrievalModule.from_pretrained(tmp_path / "model", embedder=embedder)
    assert torch.equal(again.embedder.projection.weight, module.embedder.projection.weight)


def test_an_optimizer_is_named_and_must_be_passed(tmp_path):
    module = small(optimizer=partial(torch.optim.SGD, lr=0.5))
    module.save_pretrained(tmp_path / "model")
    again = RetrievalModule.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^optimizer was SGD\(lr=0.5\) when the .*: pass optimizer=\.\.\. when"):
        again.configure_optimizers()
    again = RetrievalModule.from_pretrained(tmp_path / "model", optimizer=partial(torch.optim.SGD, lr=0.1))
    assert again.configure_optimizers()[0][0].param_groups[0]["lr"] == 0.1


def test_the_card_names_licence_picture_and_loading(tmp_path):
    draw(tmp_path / "found.png")
    module = small(mixup=SimilarityMixup(3))
    module.training_record = {
        "scores": {"test/recall@1": 0.875},
        "data": {"folder": "a|b\n <c>", "x|y": "z", "class": "Birds"},
    }
    module.save_pretrained(tmp_path / "model", license="apache-2.0", picture=tmp_path / "found.png")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "lightning_recall"
    assert {"image-retrieval", "model_hub_mixin"} <= set(card.data.tags)
    assert "| recall@1 | 0.875 |" in card.text
    assert "| folder | a\\|b &lt;c&gt; |\n| x\\|y | z |" in card.text
    assert "| mixup | SimilarityMixup(max_virtual_per_class=3, seed=0) |" in card.text
    assert 'from_pretrained("FOLDER")\nembeddings = module(images)  # (b, C, H, W)' in card.text
    assert "![Retrieved images](retrieved_images.png)" in card.text
    assert (tmp_path / "model" / "retrieved_images.png").read_bytes() == (tmp_path / "found.png").read_bytes()
    assert str(tmp_path) not in card.text + (tmp_path / "model" / "config.json").read_text()


def test_no_file_is_a_pickle(tmp_path):
    small().save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert not zipfile.is_zipfile(path)
        with pytest.raises((ValueError, IndexError)):
            list(pickletools.genops(path.read_bytes()))


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    small().save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"model holds a model already \(config.json\): choose another folder, or del"):
        small().save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "taken").mkdir()
    for name in ("found.png", "taken/retrieved_images.png"):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(ValueError, match=r"retrieved_images\.png exists, and is not overwritten"):
        small().save_pretrained(tmp_path / "taken", picture=tmp_path / "found.png")
    assert (tmp_path / "taken/retrieved_images.png").read_bytes() == b"taken/retrieved_images.png"
    small().save_pretrained(tmp_path / "taken", picture=tmp_path / "taken/retrieved_images.png")
    with pytest.raises(ValueError, match=r"picture must be an image file, no such file: no.png\.$"):
        small().save_pretrained(tmp_path / "other", picture="no.png")
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    small().save_pretrained(folder)
    return folder


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


SEGMENTATION = {"class_path": "lightning_recall.segmentation.SegmentationModule", "init_args": {}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "model holds no saved model: there is no file config.json."),
        (lambda f: (f / "model.safetensors").unlink(), "model has no weights: there is no file model.safetensors."),
        (lambda f: (f / "model.safetensors").write_bytes(b"a" * 99), "model.safetensors is damaged, or is no safeten"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged, it is no JSON: save or download"),
        (lambda f: (f / "config.json").write_text("[]"), "holds no model of lightning_recall: config.json is of anoth"),
        (lambda f: (f / "config.json").write_text('{"model": 1}'), "holds no model of lightning_recall"),
        (
            lambda f: edit(f, format=2, versions={"lightning-recall": "9.1"}),
            "was saved by lightning-recall 9.1, whose format",
        ),
        (
            lambda f: edit(f, model=SEGMENTATION),
            "holds a .*SegmentationModule, not a RetrievalModule: load it with that",
        ),
        (lambda f: edit(f, preprocessing={"sizes": 3}), "preprocessing in .*config.json is not that of this version"),
    ],
)
def test_a_damaged_or_other_folder_is_named(damage, message, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as error:
        RetrievalModule.from_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        RetrievalModule.from_pretrained(tmp_path / "model")


def test_a_config_does_not_set_arguments_of_the_loading(saved, tmp_path):
    """Neither which classes are trusted nor the device."""
    shutil.copytree(saved, tmp_path / "model")
    arguments = json.loads((saved / "config.json").read_text())["model"]["init_args"]
    foreign = {"class_path": "os.system", "init_args": {}}
    model = {"class_path": "lightning_recall.RetrievalModule", "init_args": {**arguments, "loss": foreign}}
    edit(tmp_path / "model", trust=["os"], map_location="meta", model=model)
    with pytest.raises(ValueError, match=r"loss is a os.system, which is not a class of"):
        RetrievalModule.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", ["./no", "/no/such", "a/b/c", "~/no"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("lightning_recall.sharing.config.hf_hub_download", None)
    with pytest.raises(ValueError, match=re.escape(f"{name} must be the folder of a saved model, or a repository own")):
        RetrievalModule.from_pretrained(name)


class Hub:
    """Stands for the Hugging Face Hub: what is uploaded can be downloaded."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def create_repo(self, api, repo_id, **kwargs):
        self.calls.append(("create_repo", api.token, repo_id, kwargs))
        return type("Url", (), {"repo_id": repo_id})()

    def upload_folder(self, api, *, repo_id, folder_path, **kwargs):
        self.calls.append(("upload_folder", api.token, repo_id, kwargs))
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    def download(self, repo_id, filename, **kwargs):
        self.calls.append(("download", kwargs["token"], repo_id, kwargs))
        if not (self.folder / repo_id).exists():
            raise RepositoryNotFoundError("404 Client Error. (Request ID: 1)\n\nmore", response=response())
        if not (self.folder / repo_id / filename).exists():
            raise HfHubHTTPError("no such entry", response=response())
        return str(self.folder / repo_id / filename)


def response():
    httpx = pytest.importorskip("httpx")  # huggingface_hub 1.0 and later needs it
    return httpx.Response(404, request=httpx.Request("GET", "https://hub"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "upload_folder"):
        call = getattr(hub, name)
        monkeypatch.setattr(HfApi, name, lambda api, call=call, **kwargs: call(api, **kwargs))
    monkeypatch.setattr("lightning_recall.sharing.config.hf_hub_download", hub.download)
    return hub


def test_a_model_is_pushed_to_the_hub_and_loaded_from_it(hub, tmp_path):
    draw(tmp_path / "found.png")
    module = small().eval()
    url = module.push_to_hub("me/birds", token="t", private=True, license="mit", picture=tmp_path / "found.png")
    assert url == "https://hub/me/birds/commit/1"
    assert [(name, token, repo) for name, token, repo, _ in hub.calls] == [
        ("create_repo", "t", "me/birds"),
        ("upload_folder", "t", "me/birds"),
    ]
    assert hub.calls[0][3]["private"] is True
    files = sorted(path.name for path in (hub.folder / "me/birds").iterdir())
    assert files == [*FILES, "retrieved_images.png"]
    card = (hub.folder / "me/birds/README.md").read_text()
    assert 'from_pretrained("me/birds")' in card
    assert "license: mit" in card
    again = RetrievalModule.from_pretrained("me/birds", revision="v1", token="s", local_files_only=True)
    assert torch.equal(again(images(32, 1)[:1] * 0), module(images(32, 1)[:1] * 0))
    used = {key: hub.calls[-1][3][key] for key in ("revision", "token", "local_files_only", "force_download")}
    assert used == {"revision": "v1", "token": "s", "local_files_only": True, "force_download": False}


def test_a_missing_repository_is_named(hub):
    message = r"^me/no is no folder here, and could not be downloaded from the Hugging Face Hub: [^\n]*\.$"
    with pytest.raises(ValueError, match=message):
        RetrievalModule.from_pretrained("me/no")
    (hub.folder / "me/empty").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"me/empty is no folder here, .*: no such entry"):
        RetrievalModule.from_pretrained("me/empty")


def checkpoint_of(module, path):
    trainer = Trainer(max_epochs=0, enable_checkpointing=False, **QUIET)
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("name", MODULES)
def test_checkpoints_of_python_load_without_arguments(name, tmp_path):
    make, (size, channels) = MODULES[name]
    module, batch = make().eval(), images(size, channels)
    path = checkpoint_of(module, tmp_path / "a.ckpt")
    again = RetrievalModule.load_from_checkpoint(path, weights_only=True).eval()
    assert torch.equal(again.predict_step([batch, None], 0), module.predict_step([batch, None], 0))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in module.state_dict().items())
    again.save_pretrained(tmp_path / "model")


def test_a_checkpoint_names_what_must_be_passed(tmp_path):
    path = checkpoint_of(RetrievalModule(OwnEmbedder(3), OwnLoss(7), keep_chunks=5), tmp_path / "a.ckpt")
    load = partial(RetrievalModule.load_from_checkpoint, path)
    with pytest.raises(ValueError, match=r"^embedder is a .*: pass embedder=\.\.\. with such a module when loading it"):
        load(loss=OwnLoss(1))
    with pytest.raises(ValueError, match=r"^loss is a .*OwnLoss, .*: pass loss=\.\.\. with .* when loading it\.$"):
        load(embedder=OwnEmbedder(3))
    again = load(embedder=OwnEmbedder(3), loss=OwnLoss(1), chunk_size=2)
    assert again.loss.scale == 7
    assert (again.chunk_size, again.keep_chunks) == (2, 5)


def test_checkpoints_of_earlier_versions_load_as_before(tmp_path):
    path = checkpoint_of(small(), tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    del content["constructor"]
    torch.save(content, path)
    with pytest.raises(TypeError, match="missing 2 required positional arguments: 'embedder' and 'loss'"):
        RetrievalModule.load_from_checkpoint(path)
    RetrievalModule.load_from_checkpoint(path, embedder=small().embedder, loss=RecallAtKLoss())


def test_subclasses_are_loaded_by_their_class(tmp_path):
    module = OwnModule(6, keep_chunks=2)
    module.save_pretrained(tmp_path / "model")
    path = checkpoint_of(module, tmp_path / "a.ckpt")
    for again in (OwnModule.from_pretrained(tmp_path / "model"), OwnModule.load_from_checkpoint(path)):
        assert torch.equal(again.embedder.projection[1].weight, module.embedder.projection[1].weight)
        assert again.keep_chunks == 2
    with pytest.raises(ValueError, match=r"^model is a .*OwnModule, which is not a class of lightning_recall"):
        RetrievalModule.from_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"^The checkpoint is of .*OwnModule: call its load_from_checkpoint, or pass e"
    ):
        RetrievalModule.load_from_checkpoint(path)
    again = RetrievalModule.load_from_checkpoint(path, embedder=module.embedder, loss=RecallAtKLoss())
    assert again.keep_chunks == 1
