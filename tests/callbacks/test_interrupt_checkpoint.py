import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalModule
from lightning_recall.callbacks import InterruptCheckpoint
from lightning_recall.callbacks.interrupt_checkpoint import EXIT_CODE_INTERRUPTED, exit_on_sigint

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no", "ignore:.* expects unit-norm embeddings"
)


class Press(Callback):
    """Sends SIGINT in the third step, or in validation: to one process, to all, or to the launcher."""

    def __init__(self, step=2, to="one", times=1, stage="fit"):
        self.step, self.to, self.times, self.stage = step, to, times, stage

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            self.press(trainer)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.stage == "validate":
            self.press(trainer)

    def press(self, trainer):
        last = trainer.global_rank == trainer.world_size - 1
        for _ in range(self.times):
            if self.to == "all" or (self.to == "one" and last):
                os.kill(os.getpid(), signal.SIGINT)
            if self.to != "one" and last:
                os.kill(os.getppid(), signal.SIGINT)
            time.sleep(0.05)


def fit(folder, *callbacks, ckpt_path=None, stage="fit", **kwargs):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(48, 6), torch.arange(48) % 6)
    module = RetrievalModule(nn.Linear(6, 4), RecallAtKLoss((1, 2), rank_temperature=1.0))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=int(stage == "validate"),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **kwargs,
    )
    loader = DataLoader(data, batch_size=12)
    if stage == "validate":
        trainer.validate(module, loader, verbose=False)
    else:
        trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module


def test_an_interrupted_training_is_resumed_exactly(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    whole = fit(tmp_path, devices=1)
    with pytest.raises(SystemExit):
        fit(tmp_path, InterruptCheckpoint(), Press(3), devices=1)  # the last of an epoch's four batches
    saved = tmp_path / "runs" / "version_0" / "checkpoints" / "interrupted.ckpt"
    shown = "".join(capsys.readouterr().out.split())
    assert f"Savedafterstep4.Toresume,addtothesamecommand:--ckpt_path{saved}" in shown
    assert torch.load(saved, weights_only=True)["global_step"] == 4
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored when it is interrupted
    resumed = fit(tmp_path, InterruptCheckpoint(), ckpt_path=saved, devices=1)
    assert torch.equal(resumed.embedder.weight, whole.embedder.weight)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_stops_immediately(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        fit(tmp_path, InterruptCheckpoint(), Press(1, times=2), devices=1)
    assert not (tmp_path / "runs").exists()
    signal.signal(signal.SIGINT, handler)


def test_a_workers_copy_of_the_handler_does_nothing(capsys):
    callback = InterruptCheckpoint()
    callback.process_id = os.getppid()
    callback.request_stop()
    assert not callback.stop_requested
    assert capsys.readouterr().out == ""


def test_a_training_after_an_interrupted_one_runs(tmp_path):
    callback = InterruptCheckpoint()
    callback.stop_requested = True
    fit(tmp_path, callback, devices=1)
    assert not (tmp_path / "runs").exists()


def test_outside_the_main_thread_it_does_nothing(tmp_path):
    handler, errors = signal.getsignal(signal.SIGINT), []

    def work():
        try:
            InterruptCheckpoint().setup(
                Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False), None, "fit"
            )
            fit(tmp_path, InterruptCheckpoint(), devices=1)
        except BaseException as error:  # errors in a thread do not fail the test
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_launched_process_counts_one_ctrl_c_once(monkeypatch):
    clock = iter([10.0, 10.9, 11.1])
    monkeypatch.setattr("lightning_recall.callbacks.interrupt_checkpoint.time.monotonic", lambda: next(clock))
    callback = InterruptCheckpoint()
    callback.process_id, callback.previous_handler = os.getpid(), exit_on_sigint
    callback.request_stop()
    callback.request_stop()  # the same, from the launcher
    assert callback.stop_requested
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        callback.request_stop()
    assert getattr(ended.value, "code", None) == EXIT_CODE_INTERRUPTED == 130


@pytest.mark.parametrize("end", ["train_end", "exception"])
def test_the_handler_is_restored(end):
    handler = signal.getsignal(signal.SIGINT)
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None))
    callback = InterruptCheckpoint()
    callback.on_train_start(trainer, None)
    assert signal.getsignal(signal.SIGINT) == callback.request_stop
    callback.on_exception(trainer, None, ValueError()) if end == "exception" else callback.on_train_end(trainer, None)
    ours, _ = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGINT, handler)
    assert ours is handler


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_prints_how_to_resume(rank, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lightning_recall.callbacks.interrupt_checkpoint.output_path", lambda _, name: tmp_path / name)
    saved, callback = [], InterruptCheckpoint()
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(launcher=None, reduce_boolean_decision=lambda asked, **_: asked),
        is_global_zero=rank == 0,
        global_step=3,
        progress_bar_callback=None,
        save_checkpoint=lambda path, **_: saved.append(path),
    )
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert saved == []
    callback.stop_requested = True
    with pytest.raises(KeyboardInterrupt):
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert saved == [tmp_path / "checkpoints" / "interrupted.ckpt"]  # on all processes
    assert capsys.readouterr().out == ""  # Lightning prints its own line first
    callback.on_exception(trainer, None, KeyboardInterrupt())
    assert ("Saved after step 3." in capsys.readouterr().out) == (rank == 0)
    callback.on_exception(trainer, None, KeyboardInterrupt())
    assert capsys.readouterr().out == ""


def run_of_its_own(folder, to, stage):
    """Runs in the launcher process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts pytest in the background ignores it
    torch.cuda._is_in_bad_fork = lambda: False  # torch refuses a fork in a fork, which matters to GPUs only
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        fit(folder, InterruptCheckpoint(), Press(to=to, stage=stage), devices=2, strategy="ddp_fork", stage=stage)
    except SystemExit as ended:
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            sys.exit("Ctrl-C was not given back")
        sys.exit(100 + ended.code)  # other errors exit with 1, too


@pytest.mark.parametrize(("to", "stage"), [("one", "fit"), ("all", "fit"), ("launcher", "fit"), ("one", "validate")])
def test_forked_processes_end_together_and_so_does_their_launcher(to, stage, tmp_path):
    run = multiprocessing.get_context("fork").Process(target=run_of_its_own, args=(tmp_path, to, stage))
    run.start()
    run.join(60)
    ended = run.exitcode
    run.kill()
    assert ended == 101
    if stage == "fit":
        assert (
            torch.load(tmp_path / "runs/version_0/checkpoints/interrupted.ckpt", weights_only=True)["global_step"] == 3
        )


SCRIPT = """
import signal, sys, torch
from pathlib import Path
from tests_of import fit, Press
from lightning_recall.callbacks import InterruptCheckpoint
torch.set_num_threads(1)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fit(Path("."), InterruptCheckpoint(), Press(to=sys.argv[2]), devices=2, strategy=sys.argv[1])
"""


@pytest.mark.parametrize(("strategy", "to"), [("ddp", "one"), ("ddp_spawn", "launcher")])
def test_other_launchers_end_too(strategy, to, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "tests_of.py").symlink_to(__file__)
    command = [sys.executable, "-W", "ignore", "script.py", strategy, to]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "Saved after step 3." in ended.stdout
    saved = tmp_path / "runs/version_0/checkpoints/interrupted.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 3
