"""Runs of test_lightning.py, each in a process of its own: python lightning_run.py NAME PACKAGE GLYPHS [CHECKPOINTS].

Imports PACKAGE before lightning_recall, runs the function NAME, and writes what it returns to NAME.json.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch

if __name__ == "__main__":  # pytest imports the file to look for doctests
    NAME, PACKAGE, GLYPHS, *CHECKPOINTS = sys.argv[1:]
    OTHER = {"pytorch_lightning": "lightning.pytorch", "lightning.pytorch": "pytorch_lightning"}[PACKAGE]
CONFIG = Path(__file__).parent.parent / "configs" / "glyphs.yaml"


def make_module():
    import lightning_recall
    from lightning_recall.models import SmallConvNet

    torch.manual_seed(0)
    embedder = lightning_recall.ImageEmbedder(SmallConvNet(), embedding_dim=16, norm="batch")
    mixup = lightning_recall.SimilarityMixup(max_virtual_per_class=2)
    return lightning_recall.RetrievalModule(embedder, lightning_recall.RecallAtKLoss(), mixup, chunk_size=64)


def make_data():
    from lightning_recall.datamodules import GlyphsDataModule

    return GlyphsDataModule(GLYPHS, batch_size=128, samples_per_class=4, val_classes=0.2, num_workers=0)


def make_trainer(folder, *more):
    """A Trainer of PACKAGE with every callback of ours but LearningRateSuggestion, and more."""
    from lightning_recall import callbacks as ours

    home = import_module(PACKAGE)
    checkpoints = home.callbacks.ModelCheckpoint(f"{folder}/checkpoints", "{epoch}", save_top_k=-1)
    return home.Trainer(
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=2,
        limit_test_batches=2,
        limit_predict_batches=2,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        logger=home.loggers.CSVLogger(folder),
        callbacks=[
            ours.RetrievalEvaluation(baselines=True),
            ours.RetrievedImages(),
            ours.EvaluationCharts(),
            ours.EvaluationReport(),
            ours.EmbeddingWriter(),
            ours.TrainingCurves(),
            ours.RunSummary(),
            ours.InterruptCheckpoint(),
            ours.AttributeScheduler({"loss.rank_temperature": {0: 0.02, 1: 0.01}}),
            checkpoints,
            *more,
        ],
    )


def numbers(metrics):
    return {name: float(value) for name, value in metrics.items()}


def weights_of(module):
    return {name: value.double().flatten().tolist()[:50] for name, value in module.state_dict().items()}


def python():
    """fit, validate, test, predict and resume, from Python."""
    module, data, trainer = make_module(), make_data(), make_trainer("whole")
    trainer.fit(module, data)
    results = {"fit": numbers(trainer.callback_metrics), "weights": weights_of(module)}
    results["validate"] = [numbers(scores) for scores in trainer.validate(module, data, verbose=False)]
    results["test"] = [numbers(scores) for scores in trainer.test(module, data, verbose=False)]
    results["predict"] = torch.cat(trainer.predict(module, data)).double().sum(0).tolist()
    results["files"] = sorted({path.name for path in Path("whole").rglob("*.*") if path.is_file()})
    resumed = make_module()
    make_trainer("resumed").fit(resumed, make_data(), ckpt_path="whole/checkpoints/epoch=0.ckpt")
    results["resumed"] = weights_of(resumed)
    results["learning_rate"] = suggest()
    results["refused"] = refuse()
    return results


def suggest():
    """LearningRateSuggestion ends the run once it has found a learning rate."""
    from lightning_recall.callbacks import LearningRateSuggestion

    suggestion = LearningRateSuggestion(max_lr=0.1, num_training_steps=6)
    make_trainer("suggestion", suggestion).fit(make_module(), make_data())
    return suggestion.optimal_lr.results


def command():
    """fit and test, from the command; the environment alone chooses the package."""
    from lightning_recall.cli import main

    short = [
        "--trainer.max_epochs",
        "2",
        "--trainer.limit_train_batches",
        "3",
        "--trainer.check_val_every_n_epoch",
        "1",
    ]
    settings = ["--config", str(CONFIG), "--data.root", GLYPHS, "--trainer.enable_progress_bar", "false"]
    for more in (["fit", *short], ["test", "--ckpt_path", "runs/glyphs/version_0/checkpoints/best.ckpt"]):
        sys.argv = ["lightning-recall"]
        main([more[0], *settings, *more[1:]])
    assert PACKAGE in sys.modules
    assert OTHER not in sys.modules
    metrics = [Path(f"runs/glyphs/version_{number}/metrics.csv").read_text().splitlines() for number in (0, 1)]
    return {"fit": metrics[0], "test": metrics[1]}


def load_and_resume():
    """Checkpoints of the other package's command and of its Trainer, in an environment without that package."""
    sys.modules[OTHER] = None  # the import fails
    import lightning_recall

    module = lightning_recall.RetrievalModule.load_from_checkpoint(CHECKPOINTS[0])
    saved = torch.load(CHECKPOINTS[0], weights_only=True)["state_dict"]
    resumed = make_module()
    make_trainer("resumed").fit(resumed, make_data(), ckpt_path=CHECKPOINTS[1])
    return {
        "package": lightning_recall._lightning.PACKAGE,
        "equal": [torch.equal(value, saved[name]) for name, value in module.state_dict().items()],
        "resumed": weights_of(resumed),
    }


def refuse():
    """A module of PACKAGE in a Trainer of the other package."""
    module = make_module()
    trainer = import_module(OTHER).Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    try:
        trainer.fit(module)
    except TypeError as error:
        return str(error)


if __name__ == "__main__":
    if NAME != "command":
        import_module(PACKAGE)
    Path(f"{NAME}.json").write_text(json.dumps(globals()[NAME]()))
