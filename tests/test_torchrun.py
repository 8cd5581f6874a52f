"""Two nodes of `torchrun`, on this machine, train, resume, test and predict as one process does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_recall import RetrievalModule
from lightning_recall.cli import main
from lightning_recall.datamodules import GlyphsDataModule
from lightning_recall.embedding_sets import load_embeddings
from lightning_recall.embedding_sets.shards import load_shard, shard_paths

SCRIPT = Path(__file__).parent / "node_run.py"
TESTS = (("one", 1), ("nodes", 2))  # run and version of the tests
CHECKPOINTS = "{run}/version_0/checkpoints/epoch={epoch}.ckpt"
CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "lightning_recall.RetrievalModule",
        "init_args": {
            "embedder": {
                "class_path": "lightning_recall.ImageEmbedder",
                "init_args": {
                    "backbone": {
                        "class_path": "lightning_recall.models.SmallConvNet",
                        "init_args": {"widths": [4, 4, 8]},
                    },
                    "embedding_dim": 8,
                },
            },
            "loss": {"class_path": "lightning_recall.RecallAtKLoss"},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            "chunk_size": 16,
        },
    },
    "data": {
        "class_path": "lightning_recall.datamodules.GlyphsDataModule",
        "init_args": {"batch_size": 64, "samples_per_class": 4, "augment": False},  # processes augment differently
    },
    "trainer": {
        "max_epochs": 2,
        "limit_train_batches": 3,
        "accelerator": "cpu",
        "precision": "64-true",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    },
}


def commands(run, embeddings, data, *options):
    """fit, resume after the first epoch, test and predict; each in its own version of the folder `run`."""
    trainer = {
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": run}},
        "callbacks": [
            {"class_path": "RetrievalEvaluation", "init_args": {"ks": [1, 4]}},
            {"class_path": "EmbeddingWriter", "init_args": {"folder": embeddings}},
            {"class_path": "ModelCheckpoint", "init_args": {"filename": "{epoch}", "save_top_k": -1}},
        ],
    }
    config = {**CONFIG, "trainer": CONFIG["trainer"] | trainer}
    config["data"] = {**config["data"], "init_args": config["data"]["init_args"] | {"root": str(data)}}
    Path(f"{run}.json").write_text(json.dumps(config))
    first, last = (CHECKPOINTS.format(run=run, epoch=epoch) for epoch in (0, 1))
    arguments = [
        ["fit"],
        ["fit", "--ckpt_path", first],
        ["test", "--ckpt_path", last],
        ["predict", "--ckpt_path", last],
    ]
    return [[command, "--config", f"{run}.json", *more, *options] for command, *more in arguments]


def torchrun(nodes, processes, *arguments):
    """Runs the script on nodes of `torchrun` with some processes each; returns what the processes wrote.

    This process holds the store at which the nodes meet, at a port that the system chooses.
    """
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", processes]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{store.port}", "--rdzv-conf", "is_host=0"]
    command += ["--local-addr", "127.0.0.1", SCRIPT, *arguments]  # a machine may not know its own name
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    started = [subprocess.Popen([str(part) for part in command], **options) for _ in range(nodes)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * nodes, "\n".join(outputs)
    return outputs


def metrics(path):
    """The rows of a file of metrics, without empty columns and speeds."""
    with path.open() as file:
        return [
            {name: float(value) for name, value in row.items() if value and name != "images/s"}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, glyph_folder, quick_parsing):  # noqa: ARG001  # quick_parsing saves time
    """A folder with the runs "one", of one process, and "nodes", of two nodes."""
    folder = tmp_path_factory.mktemp("torchrun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["lightning-recall"])
        fit, _, test, _ = commands("one", "one_embeddings", glyph_folder, "--trainer.devices", "1")
        for arguments in (fit, test):
            main(arguments)
        options = ("--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp")
        nodes = commands("nodes", "nodes_embeddings", glyph_folder, *options)
        outputs = torchrun(2, 1, json.dumps(nodes))
        (folder / "outputs.json").write_text(json.dumps(outputs))
    return folder


def checkpoint(folder, run, version=0):
    """The weights at the end of the training."""
    path = folder / run / f"version_{version}" / "checkpoints" / "epoch=1.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def test_two_nodes_train_as_one_process(folder):
    one, nodes = (metrics(folder / run / "version_0" / "metrics.csv") for run in ("one", "nodes"))
    assert len([row for row in one if "train/loss" in row]) == 6  # steps
    assert len(one) == len(nodes)
    for expected, actual in zip(one, nodes, strict=True):
        assert actual == pytest.approx(expected, abs=1e-6)  # logged in float32
    expected, actual = checkpoint(folder, "one"), checkpoint(folder, "nodes")
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-12, rtol=0, msg=name)


def test_two_nodes_resume(folder):
    """Lightning rounds the weights of a checkpoint to float32 before it converts the module to float64."""
    ended, resumed = checkpoint(folder, "nodes"), checkpoint(folder, "nodes", version=1)
    moved = checkpoint(folder, "nodes")["embedder.projection.1.weight"]
    first = torch.load(folder / CHECKPOINTS.format(run="nodes", epoch=0), weights_only=True)["state_dict"]
    assert (moved - first["embedder.projection.1.weight"]).abs().max() > 1e-3  # the second epoch trains
    for name, value in ended.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=0, msg=name)


def test_two_nodes_have_the_test_scores_of_one_process(folder):
    (one,), (nodes,) = (metrics(folder / run / f"version_{number}" / "metrics.csv") for run, number in TESTS)
    assert 0 < one["test/recall@1"] < 1
    assert nodes == pytest.approx(one, abs=1e-6)


def test_two_nodes_predict_each_image_once(folder, glyph_folder):
    shards = [load_shard(path)["ids"] for path in shard_paths(folder / "nodes_embeddings")]
    assert len(shards) == 2
    assert set(shards[0].tolist()) & set(shards[1].tolist()) <= {0}  # pads the last batch
    loaded = load_embeddings(folder / "nodes_embeddings")
    data = GlyphsDataModule(str(glyph_folder), num_workers=0)
    data.setup("predict")
    assert torch.equal(loaded["ids"], torch.arange(len(data.test_data)))
    assert loaded["labels"].tolist() == data.test_data.labels.tolist()
    module = RetrievalModule.load_from_checkpoint(folder / CHECKPOINTS.format(run="nodes", epoch=1)).double().eval()
    with torch.no_grad():
        expected = torch.cat([module(images) for images, _ in data.test_dataloader()])
    torch.testing.assert_close(loaded["embeddings"], expected, atol=1e-6, rtol=0)


def test_only_the_first_process_writes_and_prints(folder):
    assert {path.name for path in (folder / "nodes").iterdir()} == {f"version_{number}" for number in range(4)}
    printed = [
        output.count("Metrics and settings: nodes") for output in json.loads((folder / "outputs.json").read_text())
    ]
    assert sorted(printed) == [0, 3]  # two trainings and the test; the nodes' order is open
