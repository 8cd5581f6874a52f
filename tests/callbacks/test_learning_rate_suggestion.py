import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RetrievalModule
from lightning_recall.callbacks import LearningRateSuggestion
from lightning_recall.losses import ContrastiveLoss

pytestmark = pytest.mark.filterwarnings("ignore:.* expects unit-norm embeddings")

LABELS = torch.arange(240) % 4
LOADER = DataLoader(
    TensorDataset(torch.randn(240, 5, generator=torch.Generator().manual_seed(0)), LABELS), batch_size=8
)


def parts(*callbacks, folder=None, **kwargs):
    torch.manual_seed(0)
    module = RetrievalModule(nn.Linear(5, 3), ContrastiveLoss(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    settings = {"max_epochs": 3, **settings, **kwargs}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return module, Trainer(**settings, **quiet, callbacks=list(callbacks), default_root_dir=folder)


def test_it_is_printed_and_drawn_and_nothing_is_trained(tmp_path, capsys):
    module, trainer = parts(folder=tmp_path)
    expected = Tuner(trainer).lr_find(module, LOADER, LOADER, min_lr=1e-4, num_training=40, update_attr=False)

    module, trainer = parts(LearningRateSuggestion(1e-4, num_training_steps=40), folder=tmp_path)
    before = module.embedder.weight.clone()
    trainer.fit(module, LOADER, LOADER)
    shown = capsys.readouterr().out
    assert f"Suggested learning rate: {expected.suggestion():.2g}. Set it as lr of the optimizer" in shown
    assert (tmp_path / "runs/version_0/learning_rates.png").stat().st_size > 1000
    assert torch.equal(module.embedder.weight, before)
    assert (trainer.global_step, module.lr) == (0, None)


def test_too_few_steps_give_no_suggestion(tmp_path, capsys):
    module, trainer = parts(LearningRateSuggestion(num_training_steps=5), folder=tmp_path)
    trainer.fit(module, LOADER, LOADER)
    assert "Too few steps to suggest a learning rate." in capsys.readouterr().out


def test_epochs_that_end_before_the_steps_are_refused(tmp_path):
    module, trainer = parts(LearningRateSuggestion(), folder=tmp_path, max_epochs=2, limit_train_batches=6)
    message = "needs 100 steps, but the training ends after 12: set max_epochs to at least 17, got 2, or num_training"
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, LOADER, LOADER)


def test_wrong_bounds_are_refused():
    with pytest.raises(ValueError, match=r"min_lr must be above 0 and below max_lr, got 0 and 1.0"):
        LearningRateSuggestion(min_lr=0)
