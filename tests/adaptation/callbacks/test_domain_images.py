from collections import Counter

import pytest
import torch
from adaptation_pictures import K, dann, dm_ada, loaders, pictures, trainer_of
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_recall.adaptation.callbacks.domain_images import DomainImages, choose_images
from lightning_recall.adaptation.source_only import SourceOnlyModule


@pytest.fixture
def drawn(monkeypatch):
    """What the callback draws; the pictures are empty."""
    found = []

    def spy(images, captions, title):
        found.append((images, captions, title))
        return Figure(figsize=(1, 1))

    monkeypatch.setattr("lightning_recall.adaptation.callbacks.domain_images.draw_domain_images", spy)
    return found


def train(folder, callback, module=None, epochs=3, **kwargs):
    trainer = trainer_of(folder, callback, max_epochs=epochs, limit_val_batches=0, **kwargs)
    module = module or dm_ada()
    trainer.fit(module, *loaders())
    return trainer, module


def test_pictures_during_and_after_training(tmp_path, drawn, capsys):
    train(tmp_path, DomainImages(num_images=4, every_n_epochs=2, ratios=(0.8, 0.2)))
    assert pictures(tmp_path) == ["domain_images_epoch_2.png", "domain_images_epoch_3.png"]
    folder = tmp_path / "runs/version_0"
    assert f"Images of both domains: {folder / 'domain_images_epoch_3.png'}\n" in capsys.readouterr().out
    names = ["source", "target", "mixed 0.8", "mixed 0.2"]
    for images, captions, _ in drawn:
        assert set(images) == {*names, *(f"generated {name}" for name in names)}
        assert all(array.shape == (4, 4, 4, 3) for array in images.values())
        assert set(captions) == {"0", "1", "2"}
    assert [title for *_, title in drawn] == ["After 2 epochs", "After 3 epochs"]
    assert (drawn[0][0]["source"] == drawn[1][0]["source"]).all()  # the same images
    assert (drawn[0][0]["generated source"] != drawn[1][0]["generated source"]).any()


def test_by_default_one_picture_at_the_end_without_generated_images(tmp_path, drawn):
    train(tmp_path, DomainImages(), dann(), epochs=2)
    assert pictures(tmp_path) == ["domain_images_epoch_2.png"]
    assert set(drawn[0][0]) == {"source", "target", *(f"mixed {ratio}" for ratio in (0.8, 0.6, 0.4, 0.2))}
    assert len(drawn[0][0]["source"]) == 8


@pytest.mark.parametrize("make", [dann, dm_ada])
def test_weights_are_the_same_to_the_bit(make, tmp_path, drawn):
    _, shorter = train(tmp_path, NoPictures(), make(), epochs=2)
    _, with_pictures = train(tmp_path, DomainImages(every_n_epochs=1), make())
    _, without = train(tmp_path / "other", NoPictures(), make())
    assert len(drawn) == 3
    states = [module.state_dict() for module in (with_pictures, without, shorter)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


class NoPictures(DomainImages):
    """Draws nothing, and computes nothing."""

    def draw(self, trainer, pl_module, epochs):
        pass


def test_a_resumed_training_shows_the_same_images(tmp_path, drawn):
    trainer, _ = train(tmp_path, DomainImages(), epochs=1, enable_checkpointing=True)
    callback = DomainImages()
    again = trainer_of(tmp_path / "again", callback, max_epochs=2, limit_val_batches=0, enable_checkpointing=True)
    again.fit(dm_ada(), *loaders(), ckpt_path=trainer.checkpoint_callback.best_model_path)
    assert [title for *_, title in drawn] == ["After 1 epoch", "After 2 epochs"]
    assert all((drawn[0][0][name] == drawn[1][0][name]).all() for name in ("source", "target"))
    assert drawn[0][1] == drawn[1][1]


def test_a_new_training_has_new_images(tmp_path, drawn):
    callback = DomainImages()
    train(tmp_path, callback, dann(), epochs=1)
    train(tmp_path, callback, dann(1), epochs=1)
    assert (drawn[0][0]["source"] != drawn[1][0]["source"]).any()


def test_the_picture_is_logged_under_one_name(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    train(tmp_path, DomainImages(num_images=2, every_n_epochs=1), epochs=2, logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["domain_images"]
    assert len(events.Images("domain_images")) == 2


def test_two_processes_write_one_picture(tmp_path):
    train(
        tmp_path,
        DomainImages(num_images=2),
        dann(),
        epochs=1,
        devices=2,
        strategy="ddp_fork",
        use_distributed_sampler=False,
    )
    assert pictures(tmp_path) == ["domain_images_epoch_1.png"]


def test_fast_dev_run_writes_nothing(tmp_path):
    train(tmp_path, DomainImages(), dann(), fast_dev_run=True)
    assert pictures(tmp_path) == []


def test_images_are_of_different_classes():
    labels = torch.tensor([0] * 10 + [1, 2, 3, 3, 2, 2])
    source, target = choose_images(labels, 30, 6, seed=0)
    counts = Counter(labels[source].tolist())
    assert counts.keys() == {0, 1, 2, 3}
    assert max(counts.values()) == 2
    assert labels[source].tolist() == sorted(labels[source].tolist())
    assert len(set(source.tolist())) == len(set(target.tolist())) == 6
    assert choose_images(labels, 30, 6, seed=1)[1].tolist() != target.tolist()
    assert [len(part) for part in choose_images(labels, 5, 50, seed=0)] == [5, 5]


def test_modules_without_example_images_are_refused(tmp_path):
    class Other(SourceOnlyModule):
        example_images = None

    module = dann()
    with pytest.raises(ValueError, match="Other has none: use DANNModule or DMADAModule"):
        train(tmp_path, DomainImages(), Other(module.encoder, module.classifier, K))


def test_without_mixing_there_are_two_rows(tmp_path):
    module = dann()
    train(tmp_path, DomainImages(), SourceOnlyModule(module.encoder, module.classifier, K), epochs=1)
    assert pictures(tmp_path) == ["domain_images_epoch_1.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images must be"),
        ({"every_n_epochs": 0}, "every_n_epochs must be"),
        ({"ratios": (0.5, 1.5)}, r"ratios must be between 0 and 1, got \[0.5, 1.5\]"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DomainImages(**arguments)
