import os
import zipfile

import pytest
import torch
from torch import nn

from lightning_recall import SimilarityMixup
from lightning_recall.cli.checkpoints import check_checkpoint, is_local, load_weights
from lightning_recall.modules import RetrievalModule

WEIGHTS = {"embedder.weight": torch.ones(2, 3), "embedder.bias": torch.ones(2)}
LIGHTNING = {"state_dict": WEIGHTS, "pytorch-lightning_version": "2.6.0", "epoch": 0}
RESUMABLE = {**LIGHTNING, "optimizer_states": []}


def saved(path, content, **kwargs):
    torch.save(content, path, **kwargs)
    return path.read_bytes()


BROKEN = {
    "empty": (lambda _: b"", "is empty: the process that saved it was interrupted"),
    "first bytes": (lambda path: saved(path, RESUMABLE)[:5], "is truncated"),
    "half": (lambda path: saved(path, {**RESUMABLE, "more": torch.zeros(9000)})[:20_000], "is truncated"),
    "all but the end": (lambda path: saved(path, RESUMABLE)[:-30], "is truncated"),
    "bytes": (lambda _: bytes(range(256)) * 9, "is not a file that torch.save wrote: pass a checkpoint"),
    "zeros": (lambda _: bytes(9000), "is not a file that torch.save wrote"),
    "text": (lambda _: b"hello\n" * 99, "is not a file that torch.save wrote"),
    "weights": (lambda path: saved(path, WEIGHTS), r"holds weights only; .* pass --weights \S+ instead of --ckpt_path"),
    "old weights": (lambda path: saved(path, WEIGHTS, _use_new_zipfile_serialization=False), "holds weights only"),
    "named weights": (lambda path: saved(path, {"state_dict": WEIGHTS, "arch": "x"}), "holds weights only"),
    "a network": (lambda path: saved(path, nn.Linear(2, 2)), r"Python objects \(torch.nn.modules.linear.Linear\)"),
    "a blocked object": (lambda path: saved(path, {"call": os.system}), rf"Python objects \({os.name}.system\)"),
    "a tensor": (lambda path: saved(path, torch.ones(2)), "is not a checkpoint: it holds a Tensor"),
    "another library's": (lambda path: saved(path, {"model": WEIGHTS, "epoch": 3}), "it holds 'model', 'epoch'"),
}


@pytest.mark.parametrize("subcommand", ["fit", "test"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_has_its_own_message(tmp_path, name, subcommand):
    make, message = BROKEN[name]
    path = tmp_path / "broken.ckpt"
    path.write_bytes(make(path))
    with pytest.raises(ValueError, match=message) as caught:
        check_checkpoint(path, subcommand)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path)) * 2
    assert not any(word in str(caught.value) for word in ("weights_only", "Errno", "pickle"))


def test_checkpoints_pass(tmp_path):
    path = tmp_path / "some.ckpt"
    for content in (RESUMABLE, LIGHTNING):
        torch.save(content, path)
        check_checkpoint(path, "test")
    with pytest.raises(ValueError, match=r"save_weights_only, so its training cannot be resumed; .*--weights"):
        check_checkpoint(path, "fit")
    torch.save(RESUMABLE, path)
    check_checkpoint(path, "fit")
    torch.save(RESUMABLE, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    check_checkpoint(path, "fit")


def test_on_request_objects_are_loaded(tmp_path):
    torch.save({**RESUMABLE, "object": nn.Linear(1, 1)}, tmp_path / "some.ckpt")
    check_checkpoint(tmp_path / "some.ckpt", "fit", weights_only=False)
    with pytest.raises(ValueError, match="holds Python objects"):
        check_checkpoint(tmp_path / "some.ckpt", "fit")


def test_a_folder_names_its_checkpoints(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: pass a checkpoint file\.$"):
        check_checkpoint(tmp_path, "fit")
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"is a folder: pass a checkpoint file, such as .*last.ckpt"):
        check_checkpoint(tmp_path, "fit")


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "latest"])  # FSDP in two forms, DeepSpeed
def test_a_folder_of_a_sharded_checkpoint_passes(tmp_path, name):
    (tmp_path / name).touch()
    check_checkpoint(tmp_path, "fit")


@pytest.mark.parametrize("name", ["model.safetensors", "model.npz"])
def test_weights_of_a_backbone_have_an_option_of_their_own(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ValueError, match=r"pass backbone weights with --model.embedder.pretrained"):
        check_checkpoint(tmp_path / name, "fit")


def test_a_file_that_this_user_may_not_read_keeps_its_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "some.ckpt")

    saved(tmp_path / "some.ckpt", RESUMABLE)
    monkeypatch.setattr(torch, "load", refuse)  # tests may run as root
    with pytest.raises(PermissionError, match="Permission denied"):
        check_checkpoint(tmp_path / "some.ckpt", "fit")


def test_a_file_of_another_library_names_its_first_entries(tmp_path):
    saved(tmp_path / "some.ckpt", {f"entry {number}": number for number in range(9)})
    with pytest.raises(ValueError, match=r"it holds 'entry 0', .* 'entry 4'\.$"):
        check_checkpoint(tmp_path / "some.ckpt", "fit")


@pytest.mark.parametrize("content", [WEIGHTS, LIGHTNING, {"state_dict": WEIGHTS}])
def test_weights_are_loaded(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    module = RetrievalModule(nn.Linear(3, 2), nn.Identity())
    load_weights(module, tmp_path / "weights.pth")
    assert module.embedder.weight.sum() == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"embedder.weight": torch.ones(2, 3)}, 'in the settings. Missing .* "embedder.bias"'),
        ({**WEIGHTS, "embedder.more": torch.ones(1)}, 'Unexpected .* "embedder.more"'),
        ({**WEIGHTS, "embedder.bias": torch.ones(5)}, "size mismatch for embedder.bias"),
        ({"model": WEIGHTS}, "holds no weights of a module: it holds 'model'"),
        ({}, "it holds nothing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(RetrievalModule(nn.Linear(3, 2), nn.Identity()), tmp_path / "weights.pth")
    assert "weights.pth" in str(caught.value)


def test_keywords_and_addresses_are_not_files():
    assert is_local("a/b.pth")
    assert not any(map(is_local, ("", "best", "last", "hpc", "s3://a/b.ckpt", "registry:model")))


@pytest.mark.parametrize("now", [None, 1])
@pytest.mark.parametrize("before", [None, 1])
def test_a_new_training_starts_with_or_without_mixup(before, now, tmp_path):
    def module(seed):
        mixup = None if seed is None else SimilarityMixup(seed=seed)
        return RetrievalModule(nn.Linear(3, 2), nn.Identity(), mixup=mixup)

    first, second = module(before), module(now)
    if before:
        first.mixup.draw(torch.zeros(4, dtype=torch.int64))
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    load_weights(second, tmp_path / "weights.pth")
    assert torch.equal(second.embedder.weight, first.embedder.weight)
    if now:
        assert torch.equal(second.mixup.get_extra_state(), torch.Generator().manual_seed(1).get_state())


@pytest.mark.parametrize("text", ["bad: [", "hello", "(lp0\n.", "\x80\x05N."])
def test_files_of_any_other_kind_are_rejected_in_a_sentence(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=r"bad.yaml (is not|holds|was)"):
        check_checkpoint(tmp_path / "bad.yaml", "test")
