"""Optimizers of the networks of DM-ADA: arguments, the command line, schedulers, callbacks."""

from functools import partial

import pytest
import torch
import yaml
from adaptation_training import NOISE, K, Loader, assert_equal_weights, fit, four_networks, weights
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI, ReduceLROnPlateau
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lightning_recall.adaptation.dm_ada import DMADAModule
from lightning_recall.adaptation.inverse_decay import InverseDecayLR
from lightning_recall.adaptation.network_optimizers import NETWORKS, NetworkOptimizer, check_no_shared_arguments
from lightning_recall.optimization import WarmupCosineLR


def make(optimizers=None, **kwargs):
    return DMADAModule(*four_networks(), K, noise_dim=NOISE, optimizers=optimizers, **kwargs)


def rates(trainer):
    return dict(zip(NETWORKS, [o.param_groups[0]["lr"] for o in trainer.optimizers], strict=True))


CONFIG = """
model:
  class_path: lightning_recall.adaptation.dm_ada.DMADAModule
  init_args:
    encoder:
      class_path: lightning_recall.adaptation.models.digits.GaussianEncoder
      init_args:
        backbone: {class_path: lightning_recall.adaptation.models.digits.DigitEncoder, init_args: {width: 2}}
        latent_dim: 3
    classifier:
      class_path: lightning_recall.adaptation.models.digits.FeatureClassifier
      init_args: {feature_dim: 6, num_classes: 3}
    generator:
      class_path: lightning_recall.adaptation.models.digits.DigitGenerator
      init_args: {input_dim: 15, width: 2}
    discriminator:
      class_path: lightning_recall.adaptation.models.digits.DigitDiscriminator
      init_args: {num_classes: 3, width: 2}
    num_classes: 3
    noise_dim: 5
    mixup: {clip: 0.2, levels: [feature]}
    weights: {kl: 0.02}
    optimizers:
      discriminator:
        optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3, momentum: 0.9}}
        lr_scheduler: null
        gradient_clip_val: 2.0
      encoder:
        lr_scheduler:
        - {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 2}}
        - class_path: lightning_recall.adaptation.inverse_decay.InverseDecayLR
          init_args: {rate: 0.5}
        lr_interval: epoch
        accumulate_grad_batches: 2
"""


def parse(path):
    """What LightningCLI makes of a config."""
    quiet = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--trainer.enable_checkpointing", "false"]
    options = {"subclass_mode_model": True, "run": False, "seed_everything_default": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["program"])
        return LightningCLI(DMADAModule, args=["--config", str(path), *quiet], **options)


@pytest.mark.usefixtures("quick_parsing")
def test_a_config_sets_them(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    cli = parse(tmp_path / "config.yaml")
    module = cli.model
    assert (module.mixup.clip, module.mixup.levels, module.weights.kl) == (0.2, ("feature",), 0.02)
    assert module.optimizer_settings["discriminator"].gradient_clip_val == 2.0
    assert module.optimizer_settings["encoder"].accumulate_grad_batches == 2
    optimizers, schedulers = module.configure_optimizers()
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["SGD", "Adam", "Adam", "Adam"]
    assert optimizers[0].param_groups[0]["lr"] == 0.3
    assert [(type(c["scheduler"]).__name__, c["interval"]) for c in schedulers] == [
        ("InverseDecayLR", "step"),  # of the classifier; the generator has none
        ("StepLR", "epoch"),
        ("InverseDecayLR", "epoch"),
    ]
    assert schedulers[2]["scheduler"].rate == 0.5
    saved = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))  # as SaveConfigCallback writes it
    assert saved["model"]["init_args"]["mixup"] == {"alpha": 2.0, "clip": 0.2, "levels": ["feature"]}
    assert saved["model"]["init_args"]["optimizers"]["encoder"]["accumulate_grad_batches"] == 2


@pytest.mark.usefixtures("quick_parsing")
def test_the_defaults_are_written_to_the_config_and_read_again(tmp_path):
    settings = yaml.safe_load(CONFIG)
    for name in ("mixup", "weights", "optimizers"):
        del settings["model"]["init_args"][name]
    for number in range(2):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(settings))
        cli = parse(path)
        assert (cli.model.mixup.clip, cli.model.mixup.levels, cli.model.weights.kl) == (0.1, ("pixel", "feature"), 1.0)
        assert cli.model.network_optimizers == dict.fromkeys(NETWORKS, NetworkOptimizer())
        dumped = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
        settings = {"model": dumped["model"]}
    assert settings["model"]["init_args"]["weights"] == {"kl": 1.0, "adversarial": 0.1, "target": 0.3, "mixed": 0.3}


def test_each_scheduler_steps_with_its_optimizer():
    sgd = partial(torch.optim.SGD, lr=1.0)
    optimizers = {
        "discriminator": NetworkOptimizer(sgd, partial(StepLR, step_size=1, gamma=0.5), lr_interval="epoch"),
        "generator": NetworkOptimizer(sgd, InverseDecayLR, accumulate_grad_batches=2),
        "classifier": NetworkOptimizer(sgd, partial(InverseDecayLR, rate=1.0), lr_frequency=4),
        "encoder": NetworkOptimizer(sgd, WarmupCosineLR, every_n_batches=2),
    }
    trainer = fit(make(optimizers))
    expected = {"discriminator": 0.25, "generator": 1 / (1 + 1e-4 * 4), "classifier": 0.5, "encoder": 0.0}
    assert rates(trainer) == pytest.approx(expected, abs=1e-12)
    assert trainer.global_step == 6 + 4 + 6 + 3


def test_a_scheduler_that_ends_too_early_raises():
    optimizers = {"encoder": NetworkOptimizer(lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=5))}
    with pytest.raises(ValueError, match="OneCycleLR ends after total_steps=5, but training will step it 6 times"):
        fit(make(optimizers))


def test_plateau_early_stopping_and_checkpoints_follow_a_loss(tmp_path):
    plateau = partial(
        ReduceLROnPlateau, monitor="train/loss", factor=0.5, patience=0, threshold=1e6, threshold_mode="abs"
    )
    optimizers = {"encoder": NetworkOptimizer(lr_scheduler=plateau, lr_interval="epoch")}
    stopping = EarlyStopping("train/loss", patience=1, min_delta=1e6, check_on_train_epoch_end=True)
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="train/loss", save_top_k=-1, every_n_train_steps=8)
    trainer = fit(make(optimizers), epochs=9, callbacks=[stopping, saver], enable_checkpointing=True)
    assert trainer.current_epoch == 2  # stopped
    assert rates(trainer)["encoder"] == pytest.approx(2.5e-4)  # the first epoch is the best
    assert {path.stem for path in tmp_path.iterdir()} == {"step=8", "step=16", "step=24"}  # every second batch


def test_plateau_by_the_step_raises():
    optimizers = {"encoder": NetworkOptimizer(lr_scheduler=partial(ReduceLROnPlateau, monitor="train/loss"))}
    with pytest.raises(ValueError, match='ReduceLROnPlateau steps after a validation: set lr_interval="epoch"'):
        fit(make(optimizers))


def test_a_network_without_trainable_parameters_raises():
    module = make()
    module.generator.requires_grad_(False)
    with pytest.raises(ValueError, match=r"The generator \(Generator\) has no trainable parameter for its optimizer"):
        fit(module)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_frequency": 0}, "lr_frequency must be at least 1, got 0"),
        ({"lr_interval": "batch"}, 'lr_interval must be "step" or "epoch", got \'batch\''),
        ({"lr_scheduler": "cosine"}, "lr_scheduler must be a callable, a list, None or \"released\", got 'cosine'"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val must be above 0"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        NetworkOptimizer(**settings)


def test_arguments_for_all_networks_raise_unless_they_are_the_defaults():
    check_no_shared_arguments({"optimizer": None, "lr_interval": "epoch", "accumulate_grad_batches": 1, "seed": 3})
    for name, value in {"optimizer": torch.optim.SGD, "lr_interval": "step", "lr_frequency": 2}.items():
        with pytest.raises(ValueError, match=f"{name} of the module has no effect.*NetworkOptimizer.{name}="):
            check_no_shared_arguments({name: value})


def test_another_optimizer_than_in_the_checkpoint_raises(tmp_path):
    fit(make()).save_checkpoint(tmp_path / "end.ckpt")
    changed = {"encoder": NetworkOptimizer(lr_scheduler=partial(InverseDecayLR, rate=0.1))}
    with pytest.raises(ValueError, match=r"scheduler 2's rate is 0.0001, but now 0.1"):
        fit(make(changed), tmp_path / "end.ckpt", epochs=3)


def test_a_checkpoint_holds_the_state_of_all_optimizers(tmp_path):
    trainer = fit(make(), epochs=1)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert len(checkpoint["optimizer_states"]) == 4
    assert len(checkpoint["lr_schedulers"]) == 3
    whole, resumed = make(), make()
    fit(whole)
    fit(resumed, tmp_path / "end.ckpt", loader=Loader())
    assert_equal_weights(resumed, weights(whole))
