import csv

import pytest
import torch
from lightning_fabric.utilities.spike import TrainingSpikeException
from pytorch_lightning import Callback, LightningModule, Trainer, callbacks
from pytorch_lightning.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    SpikeDetection,
    StochasticWeightAveraging,
)
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.modules import ManualOptimization
from lightning_recall.optimization.optimizer_settings import SHARED
from lightning_recall.optimization.parameter_groups import split_parameters

INPUTS = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))  # 5 batches of 2


class Line(ManualOptimization):
    """Two weights: one in the network, one in the loss. Their gradients are known."""

    def __init__(self, loss_lr=None, **kwargs):
        super().__init__(**{"optimizer": sgd, **kwargs})
        self.loss_lr = loss_lr
        self.net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.loss = nn.Linear(2, 1)

    def parameter_groups(self):
        return split_parameters(self, [] if self.loss_lr is None else [(self.loss, {"lr": self.loss_lr})])

    def training_step(self, batch, batch_idx):
        loss = self.value(batch[0])
        self.optimize(loss)
        self.log("train/loss", loss.detach())
        return {"loss": loss.detach()}

    def value(self, inputs):
        return (1 - self.loss(self.net(inputs)).tanh()).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/score", torch.tensor(float(self.current_epoch == 0)))  # the first epoch is the best


def sgd(parameters):
    return SGD(parameters, lr=1.0)


def initialise(module):
    torch.manual_seed(0)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()


def fit(module, **kwargs):
    initialise(module)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = Trainer(**{**settings, **kwargs})
    batches = DataLoader(TensorDataset(INPUTS), batch_size=2)
    trainer.fit(module, batches, batches)
    return trainer


class Steps(Callback):
    """Records learning rates, gradients and weight changes of the steps."""

    def __init__(self):
        self.rates, self.gradients, self.moves, self.hooks = [], [], [], 0

    def on_train_start(self, trainer, pl_module):
        pl_module.net[0].weight.register_hook(lambda _: setattr(self, "hooks", self.hooks + 1))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.gradients.append(flat(p.grad for p in pl_module.parameters() if p.grad is not None))
        self.before = flat(pl_module.parameters())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.moves.append(flat(pl_module.parameters()) - self.before if hasattr(self, "before") else None)


def flat(tensors):
    return torch.cat([t.detach().flatten().clone() for t in tensors])


@pytest.mark.parametrize(("algorithm", "limit"), [("norm", 0.01), ("value", 0.02)])
def test_gradients_are_clipped(algorithm, limit):
    steps = Steps()
    fit(Line(gradient_clip_val=limit, gradient_clip_algorithm=algorithm), callbacks=[steps])
    for gradient, move in zip(steps.gradients, steps.moves, strict=True):
        assert gradient.norm() > limit
        expected = gradient * limit / gradient.norm() if algorithm == "norm" else gradient.clamp(-limit, limit)
        torch.testing.assert_close(move, -expected, atol=1e-6, rtol=1e-4)  # lr 1


@pytest.mark.parametrize(("batches", "steps"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (9, [5])])
def test_accumulated_batches_make_one_step(batches, steps):
    seen = Steps()
    trainer = fit(Line(accumulate_grad_batches=batches), callbacks=[seen])
    assert trainer.global_step == len(steps) == len(seen.gradients)

    module = Line()
    initialise(module)
    optimizer, rows = sgd(module.parameters()), iter(INPUTS.split(2))
    for count, gradient in zip(steps, seen.gradients, strict=True):
        optimizer.zero_grad()
        for _ in range(count):
            (module.value(next(rows)) / batches).backward()
        torch.testing.assert_close(flat(p.grad for p in module.parameters()), gradient)
        optimizer.step()


def test_a_validation_keeps_accumulated_gradients():
    plain, validated = Steps(), Steps()
    fit(Line(accumulate_grad_batches=4), callbacks=[plain])
    fit(Line(accumulate_grad_batches=4), callbacks=[validated], limit_val_batches=1.0, val_check_interval=1)
    torch.testing.assert_close(torch.stack(validated.gradients), torch.stack(plain.gradients))


def rates(epochs=2, **kwargs):
    steps = Steps()
    trainer = fit(Line(**kwargs), callbacks=[steps], max_epochs=epochs)
    assert trainer.global_step == len(steps.rates)
    return steps.rates


def halved(optimizer):
    return StepLR(optimizer, 1, gamma=0.5)


def test_schedulers_step():
    assert rates() == [1] * 10
    assert rates(lr_scheduler=halved) == [1] * 5 + [0.5] * 5
    assert rates(lr_scheduler=halved, lr_interval="step", epochs=1) == [1, 0.5, 0.25, 0.125, 0.0625]
    assert rates(lr_scheduler=halved, lr_interval="step", lr_frequency=2, epochs=1) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(lr_scheduler=halved, lr_frequency=2, epochs=3) == [1] * 10 + [0.5] * 5
    accumulated = {"accumulate_grad_batches": 2, "lr_interval": "step"}  # 3 steps an epoch
    assert rates(lr_scheduler=halved, **accumulated) == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]


def test_a_warm_up_and_a_decay_step_together():
    def warm_up(optimizer):
        return LinearLR(optimizer, 0.25, total_iters=4)

    def decay(optimizer):
        return CosineAnnealingLR(optimizer, 10)

    weight = nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=1.0)
    schedulers, expected = [warm_up(optimizer), decay(optimizer)], []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates(lr_scheduler=[warm_up, decay], lr_interval="step") == pytest.approx(expected)
    assert expected[0] == 0.25 < expected[3] > expected[9]


def test_a_parameter_group_has_its_own_learning_rate():
    steps = Steps()
    trainer = fit(Line(loss_lr=0.125), callbacks=[steps])
    loss, net = trainer.optimizers[0].param_groups[1], trainer.optimizers[0].param_groups[0]
    assert [group["lr"] for group in (net, loss)] == [1, 0.125]
    rates = torch.cat([torch.ones(12), torch.full((3,), 0.125)])
    torch.testing.assert_close(steps.moves[0], -steps.gradients[0] * rates, atol=1e-6, rtol=1e-4)
    assert len(Line(loss_lr=None).configure_optimizers()[0][0].param_groups) == 1


def test_a_schedule_that_overrides_it_is_refused():
    def schedule(max_lr):
        return Line(loss_lr=0.125, lr_scheduler=lambda optimizer: OneCycleLR(optimizer, max_lr, total_steps=10))

    with pytest.raises(ValueError, match=r"OneCycleLR overrides .* \[1.0, 0.125\] of .* max_lr: \[1.0, 0.125\]"):
        schedule(1.0).configure_optimizers()
    groups = schedule([1.0, 0.125]).configure_optimizers()[0][0].param_groups
    assert groups[0]["lr"] == 8 * groups[1]["lr"]


class TwoOptimizers(Line):
    def configure_optimizers(self):
        first, second = sgd(self.net.parameters()), SGD(self.loss.parameters(), lr=0.1)
        schedule = {"scheduler": StepLR(second, 1, gamma=0.1), "interval": "step", "frequency": 2}
        return [first, second], [schedule]


def test_several_optimizers_and_their_schedulers():
    seen = []

    class LastRates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    module = TwoOptimizers()
    trainer = fit(module, callbacks=[LastRates()])
    assert [first for first, _ in seen] == [1] * 5
    assert [second for _, second in seen] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert trainer.global_step == 10  # Lightning counts the steps of each


def test_gradient_hooks_fire_once_per_step():
    steps = Steps()
    fit(Line(), callbacks=[steps])
    assert steps.hooks == len(steps.gradients) == 5


def test_max_steps_counts_steps():
    trainer = fit(Line(accumulate_grad_batches=2), max_epochs=-1, max_steps=4)
    assert trainer.global_step == 4
    assert trainer.fit_loop.total_batch_idx + 1 == 7  # of the first epoch 5, which are 3 steps


class Scaler(torch.amp.GradScaler):
    def __init__(self):
        super().__init__("cpu", init_scale=1024.0)


def test_a_gradient_is_clipped_after_unscaling():
    plain, scaled, halves = Steps(), Steps(), {"gradient_clip_val": 0.01}
    fit(Line(**halves), callbacks=[plain], precision="bf16-mixed")
    plugin = MixedPrecision("16-mixed", "cpu", scaler=Scaler())
    fit(Line(**halves), callbacks=[scaled], plugins=[plugin])
    assert plugin.scaler.get_scale() == 1024
    for gradient, move in zip(scaled.gradients, scaled.moves, strict=True):
        assert move.norm().item() == pytest.approx(0.01, rel=1e-3)
        assert gradient.norm() < 100  # unscaled
    torch.testing.assert_close(scaled.gradients[0], plain.gradients[0], atol=0.05, rtol=0.05)


# The hooks of automatic optimization


class Noted:
    """Records its hooks and their arguments."""

    def note(self, name, *args):
        self.noted = [*getattr(self, "noted", []), (name, *args)]

    def on_train_batch_start(self, batch, batch_idx):
        self.note("batch", batch_idx)

    def on_before_zero_grad(self, optimizer):
        self.note("before zero", type(optimizer).__name__)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        self.note("zero", epoch, batch_idx, type(optimizer).__name__)
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_before_backward(self, loss):
        self.note("before backward", loss.item())

    def on_after_backward(self):
        self.note("after backward")

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        def closure():
            result = optimizer_closure()
            self.note("step", epoch, batch_idx, type(optimizer).__name__)
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        self.note("clip", type(optimizer).__name__, gradient_clip_val, gradient_clip_algorithm)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler, metric):
        self.note("schedule", type(scheduler).__name__, metric)
        super().lr_scheduler_step(scheduler, metric)

    def on_train_epoch_end(self):
        self.note("epoch end")
        super().on_train_epoch_end()


class NotedZero(Callback):
    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        pl_module.note("callback before zero", type(optimizer).__name__)


class NotedLine(Noted, Line):
    pass


class Automatic(LightningModule):
    """`Line` in automatic optimization."""

    def __init__(self, optimizer=sgd, scheduler=None):
        super().__init__()
        line = Line()
        self.net, self.loss, self.make, self.scheduler = line.net, line.loss, optimizer, scheduler

    def training_step(self, batch, batch_idx):
        return Line.value(self, batch[0])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        return [optimizer], [self.scheduler(optimizer)] if self.scheduler else []


class NotedAutomatic(Noted, Automatic):
    pass


@pytest.mark.parametrize(("batches", "limit"), [(1, None), (2, 0.1)])
def test_hooks_are_those_of_automatic_optimization_and_in_its_order(batches, limit):
    manual = NotedLine(lr_scheduler=halved, accumulate_grad_batches=batches, gradient_clip_val=limit)
    fit(manual, callbacks=[NotedZero()], max_epochs=2)
    automatic, clipping = NotedAutomatic(scheduler=halved), {"gradient_clip_algorithm": "norm"} if limit else {}
    settings = {"accumulate_grad_batches": batches, "gradient_clip_val": limit, **clipping}
    fit(automatic, callbacks=[NotedZero()], max_epochs=2, **settings)
    assert len(automatic.noted) > 30
    assert manual.noted == automatic.noted
    torch.testing.assert_close(flat(manual.parameters()), flat(automatic.parameters()), atol=0, rtol=0)


def test_a_plateau_is_stepped_through_the_hook():
    module = NotedLine(lr_scheduler=lambda o: ReduceLROnPlateau(o, "val/score"))
    fit(module, limit_val_batches=1.0)
    assert module.noted[-1] == ("schedule", "ReduceLROnPlateau", 1.0)


def test_an_override_of_optimizer_step_may_skip_steps():
    class EverySecond(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)

    assert fit(EverySecond(gradient_clip_val=0.1)).global_step == 2  # of 5 batches


def test_an_override_that_skips_clipping_is_refused():
    class Logs(Line):
        def on_before_optimizer_step(self, optimizer):
            self.log("grad", 1.0)

    assert fit(Logs()).global_step == 5
    with pytest.raises(ValueError, match=r"Logs.on_before_optimizer_step must call super\(\), which clips"):
        fit(Logs(gradient_clip_val=0.1))

    class ClipsOnce(Line):
        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == 0:
                super().on_before_optimizer_step(optimizer)

    with pytest.raises(ValueError, match=r"ClipsOnce.on_before_optimizer_step must call super"):
        fit(ClipsOnce(gradient_clip_val=0.1))


def test_a_failed_backward_leaves_no_accumulated_gradients():
    class FailsOnce(Line):
        def training_step(self, batch, batch_idx):
            if batch_idx != 1:
                super().training_step(batch, batch_idx)
                return
            handle = self.net[0].weight.register_hook(lambda _: 1 / 0)  # some gradients are there already
            with pytest.raises(ZeroDivisionError):
                self.optimize(self.value(batch[0]))
            handle.remove()

    seen, module = Steps(), Line()
    fit(FailsOnce(accumulate_grad_batches=2), callbacks=[seen], limit_train_batches=4)
    assert len(seen.gradients) == 1  # of batches 2 and 3
    initialise(module)
    for rows in INPUTS.split(2)[:2]:
        module.net(rows)  # the running statistics do not matter to the gradient
    for rows in INPUTS.split(2)[2:4]:
        (module.value(rows) / 2).backward()
    torch.testing.assert_close(seen.gradients[0], flat(p.grad for p in module.parameters()))


# Lightning's own callbacks


ROWS = torch.randn(120, 3, generator=torch.Generator().manual_seed(2))


def suggested(module, **kwargs):
    initialise(module)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    trainer = Trainer(**settings, enable_progress_bar=False, enable_model_summary=False, max_epochs=9)
    batches = DataLoader(TensorDataset(ROWS), batch_size=2)
    found = Tuner(trainer).lr_find(module, batches, batches, min_lr=1e-4, max_lr=10, num_training=60, **kwargs)
    return found.suggestion(), found.results["loss"]


def cycle(optimizer):
    return OneCycleLR(optimizer, 1.0, total_steps=540)


@pytest.mark.parametrize("scheduler", [None, halved, cycle])
def test_a_suggested_learning_rate_is_that_of_automatic_optimization(scheduler):
    manual = Line(lr_scheduler=scheduler, lr_interval="step")
    expected, losses = suggested(Automatic(scheduler=scheduler), update_attr=False)
    assert 1e-3 < expected < 1
    assert suggested(manual) == (expected, losses)
    assert manual.lr == expected


def test_a_suggested_learning_rate_is_used():
    module, steps = Line(lr_scheduler=halved), Steps()
    module.lr = 0.25
    fit(module, callbacks=[steps], max_epochs=2)
    assert steps.rates == [0.25] * 5 + [0.125] * 5


def test_a_suggested_learning_rate_that_a_schedule_overrides_is_refused():
    module = Line(lr_scheduler=cycle)
    module.lr = 0.25
    with pytest.raises(ValueError, match=r"OneCycleLR overrides the learning rate, so lr=0.25 has no effect.* max_lr"):
        fit(module)


def test_a_suggested_learning_rate_is_not_that_of_the_loss():
    module = Line(loss_lr=0.125)
    module.lr = 0.5
    assert [group["lr"] for group in module.configure_optimizers()[0][0].param_groups] == [0.5, 0.125]


def test_a_spike_of_the_loss_is_detected(tmp_path):
    with pytest.raises(TrainingSpikeException, match="batch 1"):
        fit(Line(), callbacks=[SpikeDetection(rtol=0.0, atol=0.0, mode="max", exclude_batches_path=tmp_path)])


def test_weights_are_averaged_over_steps():
    class Weights(Callback):
        seen = []  # noqa: RUF012  # one test's

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append(flat(pl_module.parameters()))

    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("older releases of Lightning have none")
    module = Line()
    fit(module, callbacks=[Weights(), callbacks.WeightAveraging(use_buffers=False)])
    torch.testing.assert_close(flat(module.parameters()), torch.stack(Weights.seen).mean(0))


def test_plateau_sees_the_validation_of_its_epoch():
    def never_improves(optimizer):
        return ReduceLROnPlateau(optimizer, "val/score", mode="max", factor=0.1, patience=0)

    def seen(**kwargs):
        steps = Steps()
        fit(Line(lr_scheduler=never_improves), callbacks=[steps], max_epochs=4, limit_val_batches=1.0, **kwargs)
        return steps.rates[::5]

    assert seen() == pytest.approx([1, 1, 0.1, 0.01])  # the first is the best
    assert seen(check_val_every_n_epoch=2) == pytest.approx([1, 1, 1, 1])


def test_plateau_on_the_training_loss_needs_no_validation():
    def plateau(optimizer):
        return ReduceLROnPlateau(optimizer, "train/loss", factor=0.1, patience=0, threshold=9, threshold_mode="abs")

    assert rates(3, lr_scheduler=plateau)[::5] == pytest.approx([1, 1, 0.1])


def test_early_stopping_and_checkpoints(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", monitor="val/score", mode="max")
    stopping = EarlyStopping("val/score", mode="max", patience=2)
    settings = {"limit_val_batches": 1.0, "enable_checkpointing": True, "max_epochs": 9}
    trainer = fit(Line(), callbacks=[saving, stopping], **settings)
    assert trainer.current_epoch == 3
    assert saving.best_model_path.endswith("step=5.ckpt")


def test_the_learning_rate_is_logged(tmp_path):
    module = Line(lr_scheduler=halved, lr_interval="step")
    monitor = LearningRateMonitor("step")
    trainer = fit(module, callbacks=[monitor], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    with open(trainer.logger.experiment.metrics_file_path) as file:
        logged = [float(row["lr-SGD"]) for row in csv.DictReader(file) if row["lr-SGD"]]
    assert logged == [1, 0.5, 0.25, 0.125, 0.0625]


def test_weights_are_averaged():
    class Weights(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.seen.append(flat(pl_module.parameters()))

    weights, module = Weights(), Line()
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1)
    trainer = fit(module, callbacks=[weights, swa], max_epochs=4)
    assert trainer.global_step == 20  # the epoch for the statistics of BatchNorm makes no step
    expected = torch.stack(weights.seen[1:4]).mean(0)  # as Lightning does: when epochs 2, 3 and 4 start
    torch.testing.assert_close(flat(module.parameters()), expected)


# What cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_clip_val": 1}, "give gradient_clip_val=1 to the module .* --model.gradient_clip_val 1"),
        ({"gradient_clip_algorithm": "value"}, "give gradient_clip_algorithm='value' to the module"),
        ({"accumulate_grad_batches": 2}, "give accumulate_grad_batches=2 to the module .* --model.accumulate_grad_ba"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "give accumulate_grad_batches to the module"),
    ],
)
def test_settings_of_the_trainer_are_refused_with_the_modules_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        fit(Line(), **settings)
    assert fit(Line(), gradient_clip_val=0).global_step == 5


def test_learning_rate_finder_is_refused_with_accumulation():
    with pytest.raises(ValueError, match="set the module's accumulate_grad_batches to 1 while it runs, got 2"):
        fit(Line(accumulate_grad_batches=2), callbacks=[LearningRateFinder()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_clip_val": 0}, "gradient_clip_val must be above 0, or None"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be at least 1, got 0"),
        ({"lr_frequency": 0}, "lr_frequency must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Line(**arguments)


def one_cycle(total_steps):
    return lambda optimizer: OneCycleLR(optimizer, 1.0, total_steps=total_steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_scheduler": one_cycle(2)}, "training will step it 5 times, every step: set total_steps to 5"),
        ({"lr_scheduler": one_cycle(2), "lr_frequency": 2}, "will step it 2 times, every 2 steps"),
        ({"lr_scheduler": one_cycle(2), "accumulate_grad_batches": 2}, "will step it 3 times, every step"),
        ({"lr_scheduler": lambda o: ReduceLROnPlateau(o, monitor="x")}, 'set lr_interval="epoch"'),
    ],
)
def test_schedules_that_cannot_work_are_refused_before_training(arguments, message):
    module = Line(**arguments, lr_interval="step")
    if "step it 2" in message:
        fit(module)  # just right
        return
    with pytest.raises(ValueError, match=message):
        fit(module)


def test_a_schedule_longer_than_the_training_warns():
    with pytest.warns(UserWarning, match="will not reach its final value: set total_steps to 5"):
        fit(Line(lr_scheduler=one_cycle(9), lr_interval="step"))


def test_plateau_on_an_unknown_monitor_lists_the_known_ones():
    module = Line(lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/scor"))
    with pytest.raises(ValueError, match=r"monitors 'val/scor', but only \['train/loss', 'val/score'\]"):
        fit(module, limit_val_batches=1.0)


def test_torchs_plateau_is_refused():
    with pytest.raises(ValueError, match="has no `monitor` argument"):
        fit(Line(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau))


def test_a_checkpoint_by_time_is_refused(tmp_path):
    from datetime import timedelta

    saving = ModelCheckpoint(tmp_path, train_time_interval=timedelta(seconds=1))
    with pytest.raises(ValueError, match="give every_n_train_steps or every_n_epochs"):
        fit(Line(), callbacks=[saving], enable_checkpointing=True)


class Skips(Line):
    """training_step skips some batches."""

    def __init__(self, skipped, **kwargs):
        super().__init__(**kwargs)
        self.skipped = skipped

    def training_step(self, batch, batch_idx):
        if batch_idx not in self.skipped:
            super().training_step(batch, batch_idx)


def test_an_epoch_ends_if_its_last_batch_is_skipped():
    steps = Steps()
    module = Skips({4}, lr_scheduler=halved, accumulate_grad_batches=3)
    trainer = fit(module, callbacks=[steps], max_epochs=2)
    assert steps.rates == [1.0, 0.5]  # of batches 0 to 2; batch 3 is discarded, as in automatic optimization
    assert (trainer.global_step, module.progress[SHARED].accumulated_batches) == (2, 0)


class Twice(Line):
    def training_step(self, batch, batch_idx):
        for _ in range(2):
            super().training_step(batch, batch_idx)


def test_two_steps_per_batch_end_an_epoch_once():
    steps = Steps()
    fit(Twice(lr_scheduler=halved), callbacks=[steps], max_epochs=2)
    assert steps.rates == [1.0] * 9 + [0.5] * 10 + [0.25]  # the epoch ends with its last batch's first step


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_schedule_is_compared_with_max_steps_where_the_loader_has_no_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(row,) for row in INPUTS])

    module = Line(lr_scheduler=one_cycle(5), lr_interval="step")
    initialise(module)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=20, max_epochs=-1)
    with pytest.raises(ValueError, match="OneCycleLR ends after total_steps=5, but training will step it 20 times"):
        trainer.fit(module, DataLoader(Stream(), batch_size=2))


def test_max_steps_are_counted_per_optimizer():
    class TwoCycles(TwoOptimizers):
        def configure_optimizers(self):
            optimizers, _ = super().configure_optimizers()
            return optimizers, [{"scheduler": one_cycle(5)(optimizers[0]), "interval": "step", "frequency": 1}]

    with pytest.warns(UserWarning, match="training will step it 3 times"):
        fit(TwoCycles(), max_steps=6)


def test_plateau_steps_after_a_validation_interval_longer_than_an_epoch():
    steps = Steps()
    plateau = {"lr_scheduler": lambda o: ReduceLROnPlateau(o, "val/score", mode="max", patience=0, factor=0.5)}
    settings = {"limit_val_batches": 1.0, "check_val_every_n_epoch": None, "val_check_interval": 7, "max_epochs": 4}
    fit(Line(**plateau), callbacks=[steps], **settings, num_sanity_val_steps=0)
    assert len(steps.rates) == 20
    assert steps.rates[0] == 1.0 > steps.rates[-1]


def test_lbfgs_is_refused():
    with pytest.raises(ValueError, match="LBFGS needs several loss evaluations per step"):
        fit(Line(optimizer=torch.optim.LBFGS))
