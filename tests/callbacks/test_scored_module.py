import pytest
import torch
from torch.utils.data import DataLoader

from lightning_recall._lightning import Trainer
from lightning_recall.callbacks.scored_module import ScoredModule
from lightning_recall.callbacks.validation_history import ValidationHistory


class Counted(ScoredModule):
    """Its score is the number of batches seen by the evaluation."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.history = ValidationHistory("title", {"batches": "batches"})
        self.batches, self.result, self.checked = 0, "earlier", []

    def on_validation_epoch_start(self):
        self.batches = 0

    def on_test_epoch_start(self):
        self.batches = 0

    def on_train_start(self):
        self.result_at_start = self.result

    def training_step(self, batch, batch_idx):
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.batches += 1

    def test_step(self, batch, batch_idx):
        self.batches += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def forget_results(self):
        self.result = None

    def computed_scores(self, split):
        self.result = split
        return {f"{split}/batches": torch.tensor(float(self.batches))}

    def check_scores(self, scores):
        self.checked.append(scores)


def run(module, sanity_steps, folder):
    loader = DataLoader(torch.arange(3), batch_size=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=2, num_sanity_val_steps=sanity_steps, accelerator="cpu", default_root_dir=folder, **quiet
    )
    trainer.fit(module, loader, loader)
    return trainer, loader


@pytest.mark.parametrize("sanity_steps", [0, 1, -1])
def test_validations_are_recorded_and_a_whole_sanity_check_is_the_baseline(sanity_steps, tmp_path):
    module = Counted()
    trainer, loader = run(module, sanity_steps, tmp_path)
    assert [(epochs, scores) for epochs, scores in module.history.validations] == [
        (1, {"val/batches": 3.0}),
        (2, {"val/batches": 3.0}),
    ]
    assert module.history.baselines == ({"before training": {"val/batches": 3.0}} if sanity_steps == -1 else {})
    assert module.result_at_start == {0: "earlier", 1: None, -1: "val"}[sanity_steps]
    assert module.checked == [{"val/batches": 3.0}] * 2
    assert trainer.callback_metrics["val/batches"] == 3
    (scores,) = trainer.validate(module, loader, verbose=False)
    assert scores == {"val/batches": 3.0}
    assert len(module.history.validations) == 2  # only those of the training
    (scores,) = trainer.test(module, loader, verbose=False)
    assert scores == {"test/batches": 3.0}
    assert module.result == "test"
