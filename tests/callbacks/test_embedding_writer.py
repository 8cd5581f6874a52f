import os
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from lightning_recall.callbacks import EmbeddingWriter, load_embeddings

IMAGES, LABELS = torch.randn(23, 3, generator=torch.Generator().manual_seed(0)), torch.arange(23) // 2


class Double(pl.LightningModule):
    """Doubles its input; its batch number `dies_at` is never finished."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.dies_at = dies_at
        self.seen = 0

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        images = batch[0] if isinstance(batch, list | tuple) else batch
        if batch_idx == self.dies_at:
            raise KeyboardInterrupt if self.dies_at == 2 else RuntimeError("power cut")
        self.seen += len(images)
        return self.factor.detach() * images


class Data(pl.LightningDataModule):
    def __init__(self, several=None):
        super().__init__()
        self.several = several

    def predict_dataloader(self):
        loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
        other = DataLoader(TensorDataset(-IMAGES[:9], LABELS[:9]), batch_size=4)
        return {None: loader, "list": [loader, other], "dict": {"one": loader, "two": other}}[self.several]


def trainer(tmp_path, callback, **kwargs):
    return pl.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False, callbacks=callback,
        **{"devices": 1, **kwargs},
    )  # fmt: skip


def assert_saved(folder, images=IMAGES, labels=LABELS):
    saved = load_embeddings(folder)
    assert torch.equal(saved["embeddings"], 2 * images)
    assert torch.equal(saved["labels"], labels)
    assert torch.equal(saved["ids"], torch.arange(len(images)))


def test_by_default_it_is_one_file_in_the_runs_folder(tmp_path, capsys):
    trainer(tmp_path, EmbeddingWriter()).predict(Double(), datamodule=Data())
    assert_saved(tmp_path / "runs/version_0/embeddings")
    assert str(tmp_path / "runs/version_0/embeddings") in capsys.readouterr().out
    (path,) = (tmp_path / "runs/version_0/embeddings").glob("shard-*")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["embeddings"], 2 * IMAGES.numpy())


def test_a_loader_passed_to_predict_and_images_without_labels(tmp_path):
    trainer(tmp_path, EmbeddingWriter(format="safetensors")).predict(Double(), DataLoader(IMAGES, batch_size=5))
    (path,) = (tmp_path / "runs/version_0/embeddings").glob("shard-*.safetensors")
    assert load_file(path).keys() == {"embeddings", "ids"}
    assert torch.equal(load_embeddings(tmp_path / "runs/version_0/embeddings")["embeddings"], 2 * IMAGES)


@pytest.mark.parametrize("form", ["npz", "safetensors"])
@pytest.mark.parametrize("dies_at", [2, 5])
def test_an_interrupted_run_is_resumed(form, dies_at, tmp_path):
    folder = tmp_path / "kept"
    callback, module = EmbeddingWriter(str(folder), form, shard_size=6), Double(dies_at)
    with pytest.raises((SystemExit, KeyboardInterrupt, RuntimeError)):
        trainer(tmp_path, callback).predict(module, datamodule=Data())
    (folder / f"unfinished-shard-00-00009.{form}").write_bytes(b"half")  # of a write that was cut off
    assert module.seen == len(load_embeddings(folder)["ids"]) == 4 * dies_at  # nothing is lost
    again = Double()
    trainer(tmp_path, EmbeddingWriter(str(folder), form, shard_size=6)).predict(again, datamodule=Data())
    assert again.seen == 23 - 4 * dies_at + min(16, 4 * dies_at)  # what is left, and up to 16 items to compare
    assert_saved(folder)
    whole, files = Double(), sorted(path.name for path in folder.iterdir())
    predictions = trainer(tmp_path, EmbeddingWriter(str(folder), form)).predict(whole, datamodule=Data())
    checked = [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22]  # 16 of 0 to 22, evenly spaced
    assert torch.equal(torch.cat(predictions), 2 * IMAGES[checked])
    assert sorted(path.name for path in folder.iterdir()) == files
    assert_saved(folder)


def test_a_run_is_resumed_with_another_number_of_processes(tmp_path):
    folder = str(tmp_path / "kept")
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, EmbeddingWriter(folder, shard_size=4)).predict(Double(dies_at=3), datamodule=Data())
    several = trainer(tmp_path, EmbeddingWriter(folder, shard_size=4), devices=2, strategy="ddp_fork")
    several.predict(Double(), datamodule=Data(), return_predictions=False)
    assert_saved(folder)
    assert len(list((tmp_path / "kept").glob("shard-01-*"))) > 0


@pytest.mark.parametrize(("several", "names"), [("list", ("0", "1")), ("dict", ("one", "two"))])
def test_several_dataloaders_have_folders(several, names, tmp_path):
    folder = tmp_path / "kept"
    for _ in range(2):
        if (folder / names[1]).exists():
            next((folder / names[1]).glob("shard-*")).unlink()  # as if it had not come so far
        trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Double(), datamodule=Data(several))
        assert_saved(folder / names[0])
        assert_saved(folder / names[1], -IMAGES[:9], LABELS[:9])


def test_a_lost_file_is_recomputed_and_no_other_is_overwritten(tmp_path):
    folder, data = tmp_path / "kept", Data()
    trainer(tmp_path, EmbeddingWriter(str(folder), shard_size=4)).predict(Double(), datamodule=data)
    (folder / "shard-00-00002.npz").unlink()
    for seen in (16 + 4, 23):  # 16 to compare and 4 that are lost; a run without `folder` embeds all
        module = Double()
        kept = EmbeddingWriter(str(folder) if seen == 20 else None, shard_size=4)
        trainer(tmp_path, kept).predict(module, datamodule=data)
        assert module.seen == seen
        assert_saved(folder)


def test_what_is_embedded_again_counts_once(tmp_path):
    folder = tmp_path / "kept"
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5)
    for seen in (23, 16):  # a dataloader that is passed to predict is reduced, too
        module = Double()
        trainer(tmp_path, EmbeddingWriter(str(folder))).predict(module, loader)
        assert module.seen == seen
    assert len(list(folder.glob("shard-*"))) == 1  # saved items are compared, and not saved again
    assert_saved(folder)


def test_embeddings_of_other_weights_are_not_mixed(tmp_path):
    folder = str(tmp_path / "kept")
    trainer(tmp_path, EmbeddingWriter(folder)).predict(Double(), datamodule=Data())
    other = Double()
    torch.nn.init.constant_(other.factor, 3)
    with pytest.raises(
        ValueError, match=r"of a different model or data: changed weights\. Choose another folder, or delete this one"
    ):
        trainer(tmp_path, EmbeddingWriter(folder)).predict(other, datamodule=Data())


def test_half_precision_stays_and_bf16_is_widened(tmp_path):
    for dtype, stored in ((torch.float16, torch.float16), (torch.bfloat16, torch.float32)):
        module = Double().to(dtype)
        loader = DataLoader(TensorDataset(IMAGES.to(dtype), LABELS), batch_size=4)
        folder = str(tmp_path / str(dtype))
        trainer(tmp_path, EmbeddingWriter(folder)).predict(module, loader)
        assert load_embeddings(folder)["embeddings"].dtype == stored


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="npz"):
        EmbeddingWriter(format="csv")
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        EmbeddingWriter(shard_size=0)
    with pytest.raises(ValueError, match="There are no embeddings in"):
        load_embeddings(tmp_path)

    class Scalars(Double):
        def predict_step(self, batch, batch_idx):
            return batch[0].sum()

    with pytest.raises(ValueError, match=r"predict_step of Scalars must return embeddings \(b, D\)"):
        trainer(tmp_path, EmbeddingWriter()).predict(Scalars(), datamodule=Data())


class Files(TensorDataset):
    """A data set that knows its paths and labels, as the data modules' do."""

    def __init__(self, root, names, labels=None, transforms="centre crop"):
        self.root, self.transforms = str(root), transforms
        self.paths = np.array([os.fsencode(name) for name in names])
        self.labels = np.arange(len(names)) // 2 if labels is None else np.array(labels)
        super().__init__()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return torch.full((3,), float(sum(self.paths[index]))), torch.tensor(self.labels[index])


class Of(pl.LightningDataModule):
    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def predict_dataloader(self):
        return DataLoader(self.dataset, batch_size=4)


NAMES = [f"{letter}.jpg" for letter in "bcdefghijk"]
OTHER_STATES = {
    "one more file": (
        lambda: Files("here", ["a.jpg", *NAMES]),
        "number of items was 10 and is 11; path of item 0 was b.jpg",
    ),
    "another file": (lambda: Files("here", [*NAMES[:-1], "x.jpg"]), "path of item 9 was k.jpg and is x.jpg"),
    "other order": (lambda: Files("here", NAMES[::-1]), "path of item 0 was b.jpg and is k.jpg"),
    "another label": (lambda: Files("here", NAMES, [9, *range(9)]), "label of item 0 was 0 and is 9"),
    "another folder": (lambda: Files("there", NAMES), r"folder was .*here and is .*there"),
    "other images": (lambda: Files("here", NAMES, transforms="whole"), "transforms was 'centre crop' and is 'whole'"),
    "a part": (lambda: Subset(Files("here", NAMES), range(9)), "number of items was 10 and is 9"),
    "no paths": (lambda: TensorDataset(IMAGES[:10], LABELS[:10]), "paths were saved before but are now unavailable"),
}


@pytest.mark.parametrize("given", [False, True], ids=["data module", "dataloader"])
@pytest.mark.parametrize("name", OTHER_STATES)
def test_embeddings_of_other_data_are_refused(name, given, tmp_path):
    make, message = OTHER_STATES[name]
    folder = str(tmp_path / "kept")
    trainer(tmp_path, EmbeddingWriter(folder)).predict(Double(), datamodule=Of(Files("here", NAMES)))  # all of it
    module, data = Double(), make()
    predict = {"dataloaders": DataLoader(data, batch_size=4)} if given else {"datamodule": Of(data)}
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, EmbeddingWriter(folder)).predict(module, **predict)
    assert module.seen == 0


def test_tensors_and_module_settings_are_compared(tmp_path):
    folder = str(tmp_path / "kept")
    trainer(tmp_path, EmbeddingWriter(folder)).predict(Double(), datamodule=Of(TensorDataset(IMAGES, LABELS)))
    with pytest.raises(ValueError, match="changed contents"):
        trainer(tmp_path, EmbeddingWriter(folder)).predict(Double(), datamodule=Of(TensorDataset(IMAGES + 1, LABELS)))
    module = Double()
    module.test_time_augmentation = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"data: test-time augmentation was none and is Identity\(\)\. Choose"):
        trainer(tmp_path, EmbeddingWriter(folder)).predict(module, datamodule=Of(TensorDataset(IMAGES, LABELS)))
    with pytest.raises(ValueError, match="precision was 32-true and is bf16-mixed"):
        trainer(tmp_path, EmbeddingWriter(folder), precision="bf16-mixed").predict(
            Double(), datamodule=Of(TensorDataset(IMAGES, LABELS))
        )

    class Twice(Double):
        def predict_step(self, batch, batch_idx):
            return 2 * super().predict_step(batch, batch_idx)

    with pytest.raises(ValueError, match=r"module was .*\.Double and is .*\.Twice"):
        trainer(tmp_path, EmbeddingWriter(folder)).predict(Twice(), datamodule=Of(TensorDataset(IMAGES, LABELS)))


def test_the_same_state_is_found_again(tmp_path):
    folder = str(tmp_path / "kept")
    for _ in range(2):
        module = Double()
        module.test_time_augmentation = lambda *_: None  # its repr has an address, which is another in each process
        trainer(tmp_path, EmbeddingWriter(folder)).predict(module, datamodule=Of(Files("here", NAMES)))
    assert len(list((tmp_path / "kept").glob("shard-*"))) == 1
    assert load_embeddings(folder)["embeddings"][:, 0].tolist() == [2 * sum(map(ord, name)) for name in NAMES]


def test_folders_without_a_state_are_refused(tmp_path):
    folder = tmp_path / "kept"
    for spoil in (lambda path: path.unlink(), lambda path: path.write_text('{"weights": "of an earlier version"}')):
        shutil.rmtree(folder, ignore_errors=True)
        trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Double(), datamodule=Data())
        spoil(folder / "about.json")
        with pytest.raises(ValueError, match="does not record which model and data produced its embeddings"):
            trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Double(), datamodule=Data())


def test_other_dataloaders_are_refused(tmp_path):
    folder = str(tmp_path / "kept")
    trainer(tmp_path, EmbeddingWriter(folder)).predict(Double(), datamodule=Data("dict"))
    for several, names in (("list", r"\['0', '1'\]"), (None, r"\[''\]")):
        with pytest.raises(
            ValueError, match=rf"it was made with the dataloaders \['one', 'two'\], now they are {names}"
        ):
            trainer(tmp_path, EmbeddingWriter(folder)).predict(Double(), datamodule=Data(several))
    with pytest.raises(ValueError, match="pass one of its folders one, two"):
        load_embeddings(folder)


def test_names_of_dataloaders_are_folders_side_by_side(tmp_path):
    loaders = {
        name: DataLoader(TensorDataset(IMAGES[:4] * n, LABELS[:4])) for n, name in enumerate(("a/b", "a_b", ".."))
    }
    trainer(tmp_path, EmbeddingWriter(str(tmp_path / "kept"))).predict(Double(), loaders)
    for number, name in enumerate(("a_b", "a_b_", "_")):
        assert_saved(tmp_path / "kept" / name, IMAGES[:4] * number, LABELS[:4])
    assert {path.name for path in tmp_path.iterdir()} == {"kept"}


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_a_damaged_file_is_named(form, tmp_path):
    folder = tmp_path / "kept"
    trainer(tmp_path, EmbeddingWriter(str(folder), form, shard_size=8)).predict(Double(), datamodule=Data())
    path = folder / f"shard-00-00001.{form}"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"shard-00-00001\.{form} is damaged: delete it and run predict again"):
        load_embeddings(folder)
    with pytest.raises(ValueError, match=rf"shard-00-00001\.{form} is damaged"):
        trainer(tmp_path, EmbeddingWriter(str(folder), form)).predict(Double(), datamodule=Data())
    path.unlink()
    module = Double()
    trainer(tmp_path, EmbeddingWriter(str(folder), form)).predict(module, datamodule=Data())
    assert module.seen == 15 + 8  # those to compare and those that are lost
    assert_saved(folder)


def test_a_file_with_other_numbers_of_ids_is_damaged(tmp_path):
    np.savez(tmp_path / "shard-00-00000.npz", embeddings=np.zeros((3, 2), np.float32), ids=np.arange(2))
    with pytest.raises(ValueError, match="is damaged: it has 2 ids, 3 embeddings"):
        load_embeddings(tmp_path)


@pytest.mark.parametrize("other", [{"width": 4}, {"dtype": np.float16}, {"with_labels": True}])
def test_shards_without_a_state_must_be_alike(other, tmp_path):
    def write(number, width=3, dtype=np.float32, with_labels=False):
        arrays = {"embeddings": np.full((2, width), number, dtype), "ids": np.arange(2) + 2 * number}
        np.savez(tmp_path / f"shard-00-{number:05}.npz", **arrays, **({"labels": np.arange(2)} if with_labels else {}))

    write(0)
    write(1)
    assert load_embeddings(tmp_path)["embeddings"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    write(2, **other)
    with pytest.raises(ValueError, match=r"shard-00-00000\.npz and shard-00-00002\.npz in .* come from different"):
        load_embeddings(tmp_path)


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_shards_of_two_states_are_not_mixed(form, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    other = Double()
    torch.nn.init.constant_(other.factor, 3)
    for folder, module in ((first, Double()), (second, other)):
        trainer(tmp_path, EmbeddingWriter(str(folder), form)).predict(module, datamodule=Data())
    shutil.copy(second / f"shard-00-00000.{form}", first / f"shard-00-00001.{form}")
    with pytest.raises(ValueError, match=rf"shard-00-00000\.{form} and shard-00-00001\.{form} in .* different weights"):
        load_embeddings(first)


class CountsOnDisk(Double):
    """Notes the number of images of each batch in a file, for all processes."""

    def __init__(self, path, dies_at=None):
        super().__init__(dies_at)
        self.path = path

    def predict_step(self, batch, batch_idx):
        with self.path.open("a") as file:
            file.write(f"{len(batch[0])}\n")
        return super().predict_step(batch, batch_idx)

    def num_seen(self):
        return sum(map(int, self.path.read_text().split()))


class OtherSeeds(CountsOnDisk):
    """Each process has other random numbers, as processes without `seed_everything` have."""

    def setup(self, stage):
        torch.manual_seed(self.global_rank)


def ids_in(folder):
    return load_embeddings(folder)["ids"] if any(folder.glob("shard-*")) else []


class Parts:
    def __iter__(self):
        yield from ([22, *range(11)], [*range(21, 9, -1)])

    def __len__(self):
        return 2


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
@pytest.mark.filterwarnings("ignore:.*custom batch sampler|Trying to inject `drop_last")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "order",
    [
        lambda data: DataLoader(data, batch_size=4, shuffle=True),
        lambda data: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, False)),
        lambda data: DataLoader(data, batch_size=5, shuffle=True, num_workers=2),
        lambda data: DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 4, False)),
        lambda data: DataLoader(data, batch_sampler=Parts()),
    ],
    ids=["shuffle", "batch sampler", "workers", "batch_size None", "no BatchSampler"],
)
def test_ids_are_indices_in_whatever_order_a_loader_gives_them(order, processes, tmp_path):
    folder = tmp_path / "kept"
    several = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False} if processes == 2 else {}
    loader = order(TensorDataset(IMAGES, LABELS))
    trainer(tmp_path, EmbeddingWriter(str(folder), shard_size=6), **several).predict(
        CountsOnDisk(tmp_path / "first"), loader, return_predictions=False
    )
    assert_saved(folder)
    for path in folder.glob("shard-*-00000.npz"):
        path.unlink()
    module, num_saved = CountsOnDisk(tmp_path / "seen"), len(ids_in(folder))
    trainer(tmp_path, EmbeddingWriter(str(folder)), **several).predict(module, loader, return_predictions=False)
    assert_saved(folder)
    repeated = isinstance(loader.batch_sampler, Parts)  # yields item 10 twice
    assert module.num_seen() == processes * (23 - num_saved + min(16, num_saved) + repeated)


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_what_is_left_even_if_their_random_numbers_differ(shuffle, tmp_path):
    folder, loader = tmp_path / "kept", DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=shuffle)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, EmbeddingWriter(str(folder), shard_size=4)).predict(OtherSeeds(tmp_path / "first", 3), loader)
    run = trainer(tmp_path, EmbeddingWriter(str(folder), shard_size=4), devices=2, strategy="ddp_fork")
    module = OtherSeeds(tmp_path / "seen")
    run.predict(module, loader, return_predictions=False)
    assert module.num_seen() == 23
    assert_saved(folder)


def test_unknown_indices_are_refused(tmp_path):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, num_workers=1, in_order=False)
    with pytest.raises(
        ValueError,
        match=r"needs the data set index of each item, .* 0 \(DataLoader\) cannot be recorded: use a map-style",
    ):
        trainer(tmp_path, EmbeddingWriter()).predict(Double(), loader)


@pytest.mark.parametrize("sampler", [SubsetRandomSampler(range(9)), [*range(9), *range(9), *range(5)]])
def test_a_sampler_of_some_items_is_resumed(sampler, tmp_path):
    class SomeItems(Data):
        def predict_dataloader(self):
            return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, sampler=sampler)

    folder = str(tmp_path / "kept")
    trainer(tmp_path, EmbeddingWriter(folder, shard_size=4)).predict(Double(), datamodule=SomeItems())
    assert load_embeddings(folder)["ids"].tolist() == list(range(9))
    for path in sorted((tmp_path / "kept").glob("shard-*"))[1:]:
        path.unlink()
    for drawn in (9 if isinstance(sampler, SubsetRandomSampler) else 23,) * 2:  # 4 are saved, then 9: all are compared
        module = Double()
        trainer(tmp_path, EmbeddingWriter(folder)).predict(module, datamodule=SomeItems())
        assert module.seen == drawn
        assert load_embeddings(folder)["ids"].tolist() == list(range(9))
        assert len(list((tmp_path / "kept").glob("shard-*"))) == 2


def test_a_second_predict_of_a_run_has_a_new_folder(tmp_path):
    run = trainer(tmp_path, EmbeddingWriter())
    other = Double()
    torch.nn.init.constant_(other.factor, 4)
    run.predict(Double(), datamodule=Data())
    run.predict(other, datamodule=Data())
    assert_saved(tmp_path / "runs/version_0/embeddings")
    assert torch.equal(load_embeddings(tmp_path / "runs/version_0/embeddings-1")["embeddings"], 4 * IMAGES)


def test_the_folder_says_what_each_id_is(tmp_path):
    class Named(TensorDataset):
        class_names = tuple("abcdefghij")
        paths = np.array([f"{index}.jpg" for index in range(len(IMAGES))])

    data = Named(IMAGES, torch.arange(len(IMAGES)) % 10)
    callback = EmbeddingWriter(str(tmp_path / "kept"))
    loaders = {"first": DataLoader(data, batch_size=8), "second": DataLoader(TensorDataset(IMAGES), batch_size=8)}
    trainer(tmp_path, callback).predict(Double(), loaders, return_predictions=False)
    assert not (tmp_path / "kept/second/items.csv").exists()
    header, *rows = (tmp_path / "kept/first/items.csv").read_text().splitlines()
    assert header == "id,path,label,class"
    assert rows == [f"{i},{i}.jpg,{i % 10},{'abcdefghij'[i % 10]}" for i in range(len(IMAGES))]
    assert load_embeddings(tmp_path / "kept/first")["ids"].tolist() == list(range(len(IMAGES)))


def test_of_several_writers_none_can_be_resumed(tmp_path):
    writers = [EmbeddingWriter(str(tmp_path / form), form) for form in ("npz", "safetensors")]
    trainer(tmp_path, writers).predict(Double(), datamodule=Data())
    assert_saved(tmp_path / "npz")
    assert_saved(tmp_path / "safetensors")
    shutil.rmtree(tmp_path / "npz")
    with pytest.raises(ValueError, match="safetensors holds embeddings: a Trainer can resume only one EmbeddingWriter"):
        trainer(tmp_path, writers).predict(Double(), datamodule=Data())


def test_two_processes_write_to_one_folder(tmp_path):
    run = trainer(tmp_path, EmbeddingWriter(), devices=2, strategy="ddp_fork")
    run.predict(Double(), datamodule=Data(), return_predictions=False)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]
    assert_saved(tmp_path / "runs/version_0/embeddings")


class Holds:
    """A custom data set with any attributes."""

    def __init__(self, values, **attributes):
        self._values = values
        vars(self).update(attributes)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        return torch.full((3,), float(self._values[index]) + 1), 0


T = TensorDataset(torch.randn(40, 3), torch.arange(40))
VALUES = np.arange(18)
DISAGREE = r"The embedding of item 0 differs from the saved one by .* of its norm, in"
CHANGED_DATA = {
    "samples of ImageFolder": (
        lambda: Holds(VALUES, samples=[(f"{n:02}.png", 0) for n in range(1, 19)]),
        lambda: Holds(VALUES, samples=[(f"{n:02}.png", 0) for n in (*range(5), *range(6, 19))][:18]),
        "path of item 0 was 01.png and is 00.png",
    ),
    "imgs": (
        lambda: Holds(VALUES, imgs=[("a", 0)] * 18),
        lambda: Holds(VALUES, imgs=[("a", 0)] * 17 + [("b", 0)]),
        "path of item 17 was a and is b",
    ),
    "indices of Subset": (
        lambda: Subset(T, range(20)), lambda: Subset(T, range(20, 40)), "changed Subset or ConcatDataset",
    ),
    "no Subset": (
        lambda: Subset(T, range(39, -1, -1)), lambda: T, "changed Subset or ConcatDataset",
    ),
    "order of ConcatDataset": (
        lambda: ConcatDataset([Subset(T, range(20)), T]),
        lambda: ConcatDataset([T, Subset(T, range(20))]),
        "changed Subset or ConcatDataset",
    ),
    "order of equal lengths": (
        lambda: ConcatDataset([Holds(VALUES, data=VALUES), Holds(VALUES, data=VALUES + 1)]),
        lambda: ConcatDataset([Holds(VALUES, data=VALUES + 1), Holds(VALUES, data=VALUES)]),
        "changed contents",
    ),
    "numpy images": (
        lambda: Holds(VALUES, images=VALUES), lambda: Holds(VALUES, images=VALUES + 1), "changed contents",
    ),
    "data": (lambda: Holds(VALUES, data=VALUES), lambda: Holds(VALUES, data=VALUES[::-1]), "changed contents"),
    "targets": (
        lambda: Holds(VALUES, targets=[0] * 18), lambda: Holds(VALUES, targets=[0] * 17 + [3]),
        "label of item 17 was 0 and is 3",
    ),
    "wrapper": (lambda: Holds(VALUES), lambda: Holds(VALUES[::-1]), DISAGREE),
    "list": (
        lambda: [(values, 0) for values in T.tensors[0]], lambda: [(values, 0) for values in -T.tensors[0]], DISAGREE,
    ),
    "other width": (
        lambda: [(values, 0) for values in T.tensors[0]],
        lambda: [(values[:2], 0) for values in T.tensors[0]],
        "The embedding of item 0 has dimension 2, but the saved one has dimension 3, in",
    ),
    "last item": (
        lambda: Holds(VALUES), lambda: Holds([*VALUES[:-1], 99]),
        "The embedding of item 17 differs from the saved one by 456 % of its norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("given", [False, True], ids=["data module", "dataloader"])
@pytest.mark.parametrize("name", CHANGED_DATA)
def test_changed_data_are_refused(name, given, tmp_path):
    first, second, message = CHANGED_DATA[name]
    folder = tmp_path / "kept"
    trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Double(), datamodule=Of(first()))
    files = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Double(), datamodule=Of(first()))  # the same are taken
    predict = {"dataloaders": DataLoader(second(), batch_size=4)} if given else {"datamodule": Of(second())}
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Double(), **predict)
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == files


class Scales(Double):
    """Its embeddings depend on a plain attribute, which no state_dict holds."""

    def __init__(self, scale, dies_at=None):
        super().__init__(dies_at)
        self.scale = scale

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.scale * super().predict_step(batch, batch_idx, dataloader_idx)


@pytest.mark.parametrize("processes", [1, 2])
def test_another_model_of_the_same_weights_writes_nothing(processes, tmp_path):
    folder = tmp_path / "kept"
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Scales(1.0, dies_at=3), datamodule=Data())
    several = {"devices": 2, "strategy": "ddp_fork"} if processes == 2 else {}
    error = ProcessRaisedException if processes == 2 else ValueError
    with pytest.raises(error, match=r"The embedding of item \d differs from the saved one by 5 % of its norm"):
        trainer(tmp_path, EmbeddingWriter(str(folder), shard_size=4), **several).predict(
            Scales(1.05), datamodule=Data(), return_predictions=False
        )
    assert [path.name for path in folder.glob("shard-*")] == ["shard-00-00000.npz"]
    trainer(tmp_path, EmbeddingWriter(str(folder)), **several).predict(
        Scales(1.001), datamodule=Data(), return_predictions=False
    )  # rounding
    saved = load_embeddings(folder)
    expected = torch.cat([2 * IMAGES[:12], 1.001 * (2 * IMAGES[12:])])
    torch.testing.assert_close(saved["embeddings"], expected)
    assert saved["labels"].tolist() == LABELS.tolist()


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
def test_a_shuffled_dataloader_is_reduced_and_compared(tmp_path):
    folder = str(tmp_path / "kept")
    values = torch.arange(40)
    trainer(tmp_path, EmbeddingWriter(folder, shard_size=8)).predict(Double(), DataLoader(Holds(values), batch_size=8))
    (tmp_path / "kept/shard-00-00003.npz").unlink()
    module = Double()
    run = trainer(tmp_path, EmbeddingWriter(folder, shard_size=8))
    predictions = run.predict(module, DataLoader(Holds(values), batch_size=8, shuffle=True))
    assert [len(part) for part in predictions] == [8, 8, 8]  # 16 to compare, 8 that were lost
    assert load_embeddings(folder)["embeddings"][:, 0].tolist() == [2 * (value + 1) for value in range(40)]
    changed = values.clone()
    changed[0] = 7
    with pytest.raises(ValueError, match="The embedding of item 0 differs from the saved one by"):
        trainer(tmp_path, EmbeddingWriter(folder)).predict(
            Double(), DataLoader(Holds(changed), batch_size=8, shuffle=True)
        )


def test_items_that_a_collate_function_sorts_are_refused(tmp_path):
    def by_sum(items):
        return default_collate(sorted(items, key=lambda item: float(item[0].sum())))

    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, collate_fn=by_sum)
    with pytest.raises(
        ValueError,
        match=r"needs the data set index of each item, but the indices of batch 0 are unknown: .* keeps their order",
    ):
        trainer(tmp_path, EmbeddingWriter()).predict(Double(), loader)

    class Sorts(Data):
        def predict_dataloader(self):
            return loader

    with pytest.raises(ValueError, match="needs the data set index of each item"):
        trainer(tmp_path, EmbeddingWriter()).predict(Double(), datamodule=Sorts())


def test_a_folder_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path, EmbeddingWriter("~/emb")).predict(Double(), datamodule=Data())
    assert_saved(tmp_path / "emb")
    assert_saved("~/emb")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("scale", [1.0, 1.05])
def test_nothing_is_written_before_a_saved_item_is_compared(scale, tmp_path):
    folder = tmp_path / "kept"
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Scales(1.0, dies_at=1), datamodule=Data())
    backwards = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, sampler=range(22, -1, -1))
    run = trainer(tmp_path, EmbeddingWriter(str(folder), shard_size=4))
    if scale == 1:
        run.predict(Scales(scale), backwards)
        assert_saved(folder)
        return
    with pytest.raises(ValueError, match="The embedding of item 3 differs from the saved one by 5 %"):
        run.predict(Scales(scale), backwards)
    assert [path.name for path in folder.glob("shard-*")] == ["shard-00-00000.npz"]


def test_a_process_without_a_saved_item_writes_nothing_of_another_model(tmp_path):
    class First(Data):
        def predict_dataloader(self):
            return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=1)

    folder = tmp_path / "kept"
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path, EmbeddingWriter(str(folder))).predict(Scales(1.0, dies_at=1), datamodule=First())
    run = trainer(tmp_path, EmbeddingWriter(str(folder), shard_size=2), devices=2, strategy="ddp_fork")
    with pytest.raises(ProcessRaisedException, match="The embedding of item 0 differs from the saved one by 5 %"):
        run.predict(Scales(1.05), datamodule=First(), return_predictions=False)
    assert [path.name for path in folder.glob("shard-*")] == ["shard-00-00000.npz"]
