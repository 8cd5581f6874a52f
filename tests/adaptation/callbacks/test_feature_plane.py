import numpy as np
import pytest
import torch
from adaptation_pictures import Images, dann, loaders, pictures, trainer_of
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, IterableDataset

from lightning_recall.adaptation.callbacks import FeaturePlane


@pytest.fixture
def drawn(monkeypatch):
    """What the callback draws; the pictures are empty, and the points are the first two features."""
    found = []

    def spy(rows, names, method):
        found.append((rows, names, method))
        return Figure(figsize=(1, 1))

    name = "lightning_recall.adaptation.callbacks.feature_plane"
    monkeypatch.setattr(f"{name}.draw_feature_planes", spy)
    monkeypatch.setattr(f"{name}.project", lambda features, *_: features[:, :2].double().numpy())
    return found


def train(folder, callback, epochs=2, module=None, labelled=True, ckpt_path=None, **kwargs):
    trainer = trainer_of(folder, callback, max_epochs=epochs, num_sanity_val_steps=0, **kwargs)
    module = module or dann()
    trainer.fit(module, *loaders(labelled=labelled), ckpt_path=ckpt_path)
    return trainer, module


def resume(trainer, folder, epochs):
    path = trainer.checkpoint_callback.best_model_path
    train(folder / "again", FeaturePlane("pca"), epochs, ckpt_path=path, enable_checkpointing=True)


def features(module, images):
    module.eval()
    with torch.no_grad():
        return module.encode(images.float() / 255)[:, :2]


def test_the_same_images_before_and_after(tmp_path, drawn, capsys):
    untrained = dann()
    _, module = train(tmp_path, FeaturePlane("pca", max_images=50))
    assert pictures(tmp_path) == ["feature_plane_val.png"]
    assert f"Features in the plane: {tmp_path / 'runs/version_0/feature_plane_val.png'}\n" in capsys.readouterr().out
    (((before, after), names, method),) = drawn
    assert (before.title, after.title) == ("before training", "after 2 epochs")
    assert (names, method) == (("0", "1", "2"), "principal components")
    for row, network in ((before, untrained), (after, module)):
        expected = torch.cat([features(network, Images(seed).images) for seed in (2, 3)])
        assert row.points == pytest.approx(expected.double().numpy(), abs=1e-5)
        assert row.is_source.tolist() == [True] * 20 + [False] * 20
        assert row.labels.tolist() == [*Images(2).labels.tolist(), *Images(3).labels.tolist()]


def test_images_may_be_bytes(tmp_path, drawn):
    module, images = dann(), Images(3).images
    trainer_of(tmp_path, FeaturePlane("pca", max_images=50)).validate(module, DataLoader(images, 6), verbose=False)
    assert drawn[0][0][0].points == pytest.approx(features(module, images).double().numpy(), abs=1e-5)


def test_images_are_chosen_by_seed(tmp_path, drawn):
    module, (_, evaluation) = dann(), loaders()
    for seed in (0, 0, 1):
        trainer_of(tmp_path, FeaturePlane("pca", max_images=7, seed=seed)).validate(module, evaluation, verbose=False)
    first, again, other = [rows[0].points for rows, *_ in drawn]
    assert first.shape == (14, 2)
    assert (first == again).all()
    assert (first != other).any()
    assert drawn[0][0][0].title == "validation images"


def test_after_a_test_there_is_one_row_and_missing_labels_are_kept(tmp_path, drawn):
    trainer_of(tmp_path, FeaturePlane("pca")).test(dann(), loaders(labelled=False)[1], verbose=False)
    assert pictures(tmp_path) == ["feature_plane_test.png"]
    ((rows, *_),) = drawn
    assert [row.title for row in rows] == ["test images"]
    assert rows[0].labels[20:].tolist() == [-1] * 20


def test_target_images_alone(tmp_path, drawn):
    trainer_of(tmp_path, FeaturePlane("pca")).test(dann(), loaders()[1]["target"], verbose=False)
    assert not drawn[0][0][0].is_source.any()


def test_weights_are_the_same_to_the_bit(tmp_path):
    """With t-SNE, and a validation set that draws from the global generator."""

    def weights(*callbacks):
        trainer = trainer_of(tmp_path, *callbacks, max_epochs=2, num_sanity_val_steps=0)
        train, _ = loaders()
        noisy = {name: DataLoader(Images(2, noise=True), 6) for name in ("source", "target")}
        module = dann()
        trainer.fit(module, train, noisy)
        return module.state_dict()

    with_picture, without = weights(FeaturePlane("tsne", max_images=10)), weights()
    assert pictures(tmp_path) == ["feature_plane_val.png"]
    assert all(torch.equal(with_picture[name], without[name]) for name in without)


def test_a_resumed_training_draws_the_features_before_its_start(tmp_path, drawn):
    trainer, _ = train(tmp_path, FeaturePlane("pca"), epochs=1, enable_checkpointing=True)
    resume(trainer, tmp_path, epochs=2)
    (first, _), (second, last) = drawn[0][0], drawn[1][0]
    assert (second.title, last.title) == ("before training", "after 2 epochs")
    assert all(np.array_equal(part, other) for part, other in zip(first, second, strict=True))


def test_a_checkpoint_without_the_callback_starts_there(tmp_path, drawn):
    trainer = trainer_of(tmp_path, max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=True)
    trainer.fit(dann(), *loaders())
    resume(trainer, tmp_path, epochs=3)
    assert [row.title for row in drawn[0][0]] == ["after 1 epoch", "after 3 epochs"]


def test_a_second_training_starts_anew(tmp_path, drawn):
    callback = FeaturePlane("pca")
    train(tmp_path, callback, epochs=1)
    train(tmp_path, callback, epochs=1, module=dann(1))
    assert (drawn[0][0][0].points != drawn[1][0][0].points).any()


def test_two_processes_write_one_picture(tmp_path):
    two = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    train(tmp_path, FeaturePlane("pca", max_images=5), epochs=1, **two)
    assert pictures(tmp_path) == ["feature_plane_val.png"]


def test_fast_dev_run_writes_nothing(tmp_path):
    train(tmp_path, FeaturePlane("pca"), fast_dev_run=True)
    assert pictures(tmp_path) == []


def test_features_that_are_not_finite_are_zero(tmp_path, drawn):
    module = dann()
    module.encoder[1].weight.data[0] = float("nan")
    with pytest.warns(UserWarning, match="Some features are not finite"):
        trainer_of(tmp_path, FeaturePlane("pca")).test(module, loaders()[1], verbose=False)
    assert (drawn[0][0][0].points[:, 0] == 0).all()


class Stream(IterableDataset):
    def __iter__(self):
        yield from Images(2)


def test_data_sets_must_be_map_style(tmp_path):
    with pytest.raises(ValueError, match="FeaturePlane needs dataloaders with map-style data sets"):
        trainer_of(tmp_path, FeaturePlane("pca")).test(dann(), DataLoader(Stream(), 4), verbose=False)


def test_a_training_without_validation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="FeaturePlane needs validation dataloaders before the first step"):
        train(tmp_path, FeaturePlane("pca"), limit_val_batches=0)


@pytest.mark.parametrize(("projection", "max_images"), [("umap", 5), ("pca", 1)])
def test_wrong_settings_are_refused(projection, max_images):
    with pytest.raises(ValueError, match="must be"):
        FeaturePlane(projection, max_images)
