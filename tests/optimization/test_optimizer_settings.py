"""Several optimizers, each with its own losses, clipping, accumulation and cadence, against loops by hand."""

import math
from contextlib import nullcontext

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch import distributed, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lightning_recall.optimization.gradients import average_gradients
from lightning_recall.optimization.manual_optimization import ManualOptimization
from lightning_recall.optimization.optimizer_settings import OptimizerSettings, check_optimizers

pytestmark = pytest.mark.filterwarnings("ignore:The total number of parameters detected may be inaccurate")

BATCHES = torch.randn(7, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # 7 of 8 items


class Loader:
    """Gives each process its part of the batches, and resumes in the middle of an epoch."""

    def __init__(self):
        self.position = 0

    def __len__(self):
        return len(BATCHES)

    def __iter__(self):
        several = distributed.is_initialized()
        rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        for position in range(self.position % len(BATCHES), len(BATCHES)):
            self.position = position + 1
            yield BATCHES[position, rank::world_size]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def networks():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    return generator.double(), critic.double()


def critic_loss(generator, critic, batch):
    return (critic(generator(batch).detach()).square() + (1 - critic(batch[:, :2])).square()).mean()


def generator_loss(generator, critic, batch):
    return (1 - critic(generator(batch))).square().mean()


def optimizers(generator, critic):
    return {"critic": Adam(critic.parameters(), lr=0.1), "generator": SGD(generator.parameters(), 0.5, momentum=0.9)}


class Adversarial(ManualOptimization):
    """Trains a critic, and then the generator against the critic that has just stepped."""

    def __init__(self, critic=None, generator=None):
        super().__init__()
        self.generator, self.critic = networks()
        self.optimizer_settings = {
            "critic": OptimizerSettings(**(critic or {})),
            "generator": OptimizerSettings(**(generator or {})),
        }

    def configure_optimizers(self):
        return list(optimizers(self.generator, self.critic).values())

    def training_step(self, batch, batch_idx):
        self.optimize({"critic": critic_loss(self.generator, self.critic, batch)})
        self.optimize({"generator": generator_loss(self.generator, self.critic, batch)})


def by_hand(epochs=2, **settings):
    """The same training without Lightning: gradients by torch.autograd.grad."""
    generator, critic = networks()
    parts = optimizers(generator, critic)
    losses = {"critic": critic_loss, "generator": generator_loss}
    number = 0
    for _ in range(epochs):
        gradients = {}
        for position, batch in enumerate(BATCHES, 1):
            number += 1
            for name, optimizer in parts.items():
                options = {"every": 1, "accumulate": 1, "norm": None, "value": None, **settings.get(name, {})}
                parameters = optimizer.param_groups[0]["params"]
                if number % options["every"] == 0:
                    loss = losses[name](generator, critic, batch) / options["accumulate"]
                    gradients.setdefault(name, []).append(torch.autograd.grad(loss, parameters))
                parted = gradients.get(name, [])
                if len(parted) == options["accumulate"] or (parted and position == len(BATCHES)):
                    for parameter, *parts_of_gradient in zip(parameters, *parted, strict=True):
                        parameter.grad = sum(parts_of_gradient)
                    clip(parameters, options["norm"], options["value"])
                    optimizer.step()
                    gradients[name] = []
    return {**dict(generator.named_parameters("generator")), **dict(critic.named_parameters("critic"))}


def clip(parameters, norm, value):
    if norm:
        total = sum(p.grad.square().sum() for p in parameters).sqrt()
        for p in parameters:
            p.grad *= min(1, norm / (total + 1e-6))  # as torch, against division by 0
    if value:
        for p in parameters:
            p.grad.clamp_(-value, value)


def fit(module, ckpt_path=None, epochs=2, **kwargs):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, **kwargs}
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "precision": "64-true", **settings}
    if "plugins" in settings:
        del settings["precision"]
    trainer = Trainer(**settings, max_epochs=epochs)
    trainer.fit(module, Loader(), ckpt_path=ckpt_path)
    return trainer


def assert_trained(module, expected, atol=1e-12):
    start, _ = networks()
    parameters = dict(module.named_parameters())
    assert (parameters["generator.0.weight"] - start[0].weight).abs().max() > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(
            parameters[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


CASES = {
    "plain": ({}, {}),
    "clipped": ({"norm": 0.02}, {"value": 0.01}),
    "accumulated": ({}, {"accumulate": 2}),
    "other way round": ({"accumulate": 2}, {}),
    "every third": ({}, {"every": 3}),
    "all": ({"accumulate": 3, "norm": 0.02}, {"accumulate": 2, "every": 2, "norm": 0.01}),
}


def settings_of(options):
    """Options of `by_hand` as arguments of `OptimizerSettings`."""
    algorithm = "value" if "value" in options else "norm"
    return {
        "gradient_clip_val": options.get("norm", options.get("value")),
        "gradient_clip_algorithm": algorithm,
        "accumulate_grad_batches": options.get("accumulate", 1),
        "every_n_batches": options.get("every", 1),
    }


def adversarial(case):
    return Adversarial(*map(settings_of, CASES[case]))


def expected_of(case):
    critic, generator = CASES[case]
    return by_hand(critic=critic, generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_two_optimizers_take_the_steps_of_a_loop_by_hand(case):
    module = adversarial(case)
    fit(module)
    assert_trained(module, expected_of(case))


def test_the_cases_differ():
    ends = [expected_of(case)["generator.0.weight"] for case in CASES]
    for number, end in enumerate(ends):
        assert all((end - other).abs().max() > 1e-4 for other in ends[:number])


OPTIONS = [{"find_unused_parameters": True}, {"gradient_as_bucket_view": True}]


@pytest.mark.parametrize(("case", "options"), [*((case, {}) for case in CASES), *(("all", given) for given in OPTIONS)])
def test_two_processes_take_the_steps_of_one(case, options):
    module = adversarial(case)
    fit(module, devices=2, strategy=DDPStrategy(start_method="fork", **options))
    assert_trained(module, expected_of(case))


@pytest.mark.parametrize(
    ("case", "batch", "devices"),
    [
        *(("other way round", batch, 1) for batch in (1, 7, 9)),
        *(("all", batch, 1) for batch in (1, 4, 5, 7, 9, 11)),
        *(("all", batch, 2) for batch in (3, 9)),
        ("every third", 8, 1),
    ],
)
def test_a_checkpoint_between_batches_resumes_to_the_same_weights(case, batch, devices, tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch_of_loader, batch_idx):
            if trainer.fit_loop.total_batch_idx + 1 == batch:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    strategy = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto"}
    fit(adversarial(case), callbacks=[Saves()], **strategy)
    module = adversarial(case)
    fit(module, tmp_path / "middle.ckpt", **strategy)
    assert_trained(module, expected_of(case))


def test_losses_of_one_call_share_a_graph_and_see_the_weights_before_the_steps():
    class Together(Adversarial):
        def training_step(self, batch, batch_idx):
            score = self.critic(self.generator(batch))
            self.optimize({"critic": score.square().mean(), "generator": (1 - score).square().mean()})

    module = Together()
    fit(module)
    generator, critic = networks()
    parts = optimizers(generator, critic)
    for batch in [*BATCHES, *BATCHES]:
        score = critic(generator(batch))
        losses = {"critic": score.square().mean(), "generator": (1 - score).square().mean()}
        for name, optimizer in parts.items():
            parameters = optimizer.param_groups[0]["params"]
            gradients = torch.autograd.grad(losses[name], parameters, retain_graph=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        for optimizer in parts.values():
            optimizer.step()
    expected = {**dict(generator.named_parameters("generator")), **dict(critic.named_parameters("critic"))}
    assert_trained(module, expected)


def test_gradients_of_other_optimizers_are_untouched():
    class Marks(Adversarial):
        def training_step(self, batch, batch_idx):
            marks = [torch.full_like(p, 7.0) for p in self.generator.parameters()]
            for parameter, mark in zip(self.generator.parameters(), marks, strict=True):
                parameter.grad = mark
            self.optimize({"critic": generator_loss(self.generator, self.critic, batch)})  # depends on both
            assert all(
                p.grad is mark and (mark == 7).all() for p, mark in zip(self.generator.parameters(), marks, strict=True)
            )
            self.checked = True

    module = Marks()
    fit(module, epochs=1)
    assert module.checked


class ScaledOnly(MixedPrecision):
    """The gradient scaler of mixed precision, whose scale doubles after each step, without low precision."""

    def __init__(self, growth_interval=1):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=growth_interval)
        super().__init__("16-mixed", "cpu", scaler=scaler)

    def forward_context(self):
        return nullcontext()


@pytest.mark.parametrize("case", CASES)
def test_a_scale_that_changes_between_the_optimizers_changes_nothing(case):
    module, plugin = adversarial(case), ScaledOnly()
    trainer = fit(module, plugins=[plugin])
    assert plugin.scaler.get_scale() == 1024 * 2**trainer.global_step
    assert_trained(module, expected_of(case))


def test_a_scale_that_changes_between_optimizers_of_one_loss_changes_nothing():
    class OneLoss(Adversarial):
        def __init__(self):
            super().__init__()
            self.optimizer_settings = {}

        def training_step(self, batch, batch_idx):
            self.optimize(generator_loss(self.generator, self.critic, batch))

    plain, scaled = OneLoss(), OneLoss()
    fit(plain)
    fit(scaled, plugins=[ScaledOnly()])
    assert_trained(scaled, dict(plain.named_parameters()))


@pytest.mark.parametrize("growth", [1, 1000])
def test_a_step_that_overflows_is_skipped_by_its_optimizer_only(growth):
    class Overflows(Adversarial):
        def training_step(self, batch, batch_idx):
            broken = float("inf") if batch_idx == 2 else 1.0
            self.optimize({"critic": critic_loss(self.generator, self.critic, batch) * broken})
            self.optimize({"generator": generator_loss(self.generator, self.critic, batch)})

    class Skips(Adversarial):
        def training_step(self, batch, batch_idx):
            if batch_idx != 2:
                self.optimize({"critic": critic_loss(self.generator, self.critic, batch)})
            self.optimize({"generator": generator_loss(self.generator, self.critic, batch)})

    expected, module = Skips(), Overflows()
    fit(expected)
    fit(module, plugins=[ScaledOnly(growth)])
    assert_trained(module, dict(expected.named_parameters()))


def test_losses_are_needed_in_the_batches_that_are_used_and_at_the_end_of_an_epoch():
    due = []

    class Guards(Adversarial):
        def training_step(self, batch, batch_idx):
            due.append(self.is_due("generator"))
            self.optimize({"critic": critic_loss(self.generator, self.critic, batch)})
            if due[-1]:
                self.optimize({"generator": generator_loss(self.generator, self.critic, batch)})

    options = {"every": 3, "accumulate": 2}
    module = Guards(generator=settings_of(options))
    trainer = fit(module)
    used = [3, 6, 9, 12, 14]  # 14 ends the second epoch, whose last step has 9 and 12 already
    assert [number for number, flag in enumerate(due, 1) if flag] == used[:4]
    assert trainer.global_step == 14 + 2
    assert_trained(module, by_hand(generator=options))

    due.clear()
    module = Guards(generator=settings_of({"every": 2, "accumulate": 2}))
    fit(module, epochs=1)
    assert [number for number, flag in enumerate(due, 1) if flag] == [2, 4, 6, 7]  # 6 waits for a step, made in 7
    assert_trained(module, by_hand(1, generator={"every": 2, "accumulate": 2}))


class Scheduled(Adversarial):
    """Both optimizers have schedulers: a scheduler steps with its optimizer."""

    def __init__(self, interval="step", frequency=1, **kwargs):
        super().__init__(**kwargs)
        self.timing = {"interval": interval, "frequency": frequency}
        self.halvings = []

    def configure_optimizers(self):
        both = super().configure_optimizers()
        return both, [{"scheduler": StepLR(part, 1, gamma=0.5), **self.timing} for part in both]

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        critic, generator = (optimizer.param_groups[0]["lr"] for optimizer in self.trainer.optimizers)
        self.halvings.append((round(-math.log2(critic / 0.1)), round(-math.log2(generator / 0.5))))


def test_schedulers_step_with_their_optimizer():
    module = Scheduled(generator={"every_n_batches": 3})
    fit(module)
    assert module.halvings == [(number, number // 3) for number in range(1, 15)]

    module = Scheduled(frequency=2, generator={"accumulate_grad_batches": 2})
    fit(module)
    steps = [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 4)]  # the last batch of an epoch steps both
    assert module.halvings[:7] == [(critic // 2, generator // 2) for critic, generator in steps]

    module = Scheduled("epoch")
    fit(module)
    assert module.halvings == [(0, 0)] * 6 + [(1, 1)] * 7 + [(2, 2)]


def test_the_schedules_of_a_resumed_training_continue(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 8:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def module():
        return Scheduled(frequency=2, generator={"every_n_batches": 3})

    whole, resumed = module(), module()
    fit(whole, callbacks=[Saves()])
    fit(resumed, tmp_path / "middle.ckpt")
    assert resumed.halvings == whole.halvings[9:]
    assert_trained(resumed, dict(whole.named_parameters()))


def test_a_parameter_that_some_processes_use_gets_their_mean_and_an_unused_one_none():
    class Checks(Adversarial):
        def __init__(self):
            super().__init__()
            self.sometimes, self.never = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))

        def configure_optimizers(self):
            critic, generator = optimizers(self.generator, self.critic).values()
            critic.add_param_group({"params": [self.sometimes, self.never]})
            return [critic, generator]

        def training_step(self, batch, batch_idx):
            rank = distributed.get_rank()
            loss = critic_loss(self.generator, self.critic, batch)
            self.optimize({"critic": loss + (self.sometimes.sum() if rank == 1 else 0)})
            assert torch.equal(self.sometimes.grad, torch.full((2,), 0.5, dtype=torch.float64))
            assert self.never.grad is None

    fit(Checks(), epochs=1, devices=2, strategy="ddp_fork")


def test_means_over_processes_keep_dtypes_apart(monkeypatch):
    """A second process is faked, which has gradients of 3 in float64 and none in float32."""
    double, single = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(1))
    double.grad, single.grad = torch.ones_like(double), torch.full_like(single, 8.0)
    others = {torch.float64: torch.tensor([3.0, 3.0, 1.0]), torch.float32: torch.tensor([0.0, 0.0])}
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: flat.add_(others[flat.dtype]))
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    average_gradients([double, single])
    assert double.grad.tolist() == [2.0, 2.0]
    assert single.grad.tolist() == [4.0]


# What cannot work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_clip_val": 0.0}, "gradient_clip_val must be above 0, or None for no clipping, got 0.0"),
        ({"gradient_clip_algorithm": "max"}, 'gradient_clip_algorithm must be "norm" or "value", got \'max\''),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be at least 1, got 0"),
        ({"every_n_batches": 0}, "every_n_batches must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(**arguments)


def changed(kind=Adversarial, **attributes):
    module = kind()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def test_settings_that_do_not_match_the_optimizers_are_refused():
    one = {"critic": OptimizerSettings()}
    with pytest.raises(ValueError, match=r"names 1 optimizers \(critic\), but configure_optimizers returns 2"):
        fit(changed(optimizer_settings=one))
    with pytest.raises(ValueError, match="have no effect on optimizers with their own settings"):
        fit(changed(gradient_clip_val=1.0))
    module = changed()
    module.critic[2] = module.generator[2]
    with pytest.raises(ValueError, match=r"shape \(2, 4\) belongs to the optimizers 'critic' and 'generator'"):
        fit(module)
    trainer = type("Fake", (), {"optimizers": [None], "world_size": 2, "strategy": FSDPStrategy()})()
    with pytest.raises(ValueError, match='needs strategy="ddp" on several processes, got FSDPStrategy'):
        check_optimizers(trainer, one, OptimizerSettings())
    trainer.strategy = DDPStrategy(static_graph=True)
    with pytest.raises(ValueError, match="optimizer_settings does not support static_graph"):
        check_optimizers(trainer, one, OptimizerSettings())


class Optimizes(Adversarial):
    def training_step(self, batch, batch_idx):
        self.optimize(self.losses(generator_loss(self.generator, self.critic, batch)))


@pytest.mark.parametrize(
    ("losses", "attributes", "message"),
    [
        (
            lambda loss: loss,
            {},
            r"Pass a dict of losses to optimize\(\), with keys from optimizer_settings: \['critic', 'generator'\]",
        ),
        (
            lambda loss: {"criti": loss},
            {},
            r"losses for \['criti'\], but optimizer_settings has \['critic', 'generator'\]",
        ),
        (lambda loss: {"critic": loss}, {"optimizer_settings": {}}, "optimizer_settings is empty: pass a single loss"),
    ],
)
def test_losses_without_an_optimizer_are_refused(losses, attributes, message):
    with pytest.raises(ValueError, match=message):
        fit(changed(Optimizes, losses=losses, **attributes))


def test_a_checkpoint_of_other_names_or_accumulation_is_refused(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    fit(Adversarial(critic={"accumulate_grad_batches": 2}), callbacks=[Saves()], epochs=1)
    with pytest.raises(ValueError, match="accumulate_grad_batches=2 of critic: resume with that number, not 3"):
        fit(Adversarial(critic={"accumulate_grad_batches": 3}), tmp_path / "first.ckpt")
    renamed = {"judge": OptimizerSettings(), "generator": OptimizerSettings()}
    with pytest.raises(ValueError, match=r"has \['critic', 'generator'\], but now \['judge'"):
        fit(changed(optimizer_settings=renamed), tmp_path / "first.ckpt")
    with pytest.raises(ValueError, match=r"has \['critic', 'generator'\], but now no names"):
        fit(changed(optimizer_settings={}), tmp_path / "first.ckpt")


def test_a_failed_backward_of_a_named_loss_leaves_no_accumulated_gradients():
    class FailsOnce(Adversarial):
        def training_step(self, batch, batch_idx):
            if batch_idx != 1:
                super().training_step(batch, batch_idx)
                return
            handle = self.critic[0].weight.register_hook(lambda _: 1 / 0)  # some gradients are there already
            with pytest.raises(ZeroDivisionError):
                super().training_step(batch, batch_idx)
            handle.remove()
            assert self.progress["critic"].accumulated_batches == 0

    module = FailsOnce(critic={"accumulate_grad_batches": 2})
    fit(module, epochs=1)
    steps = [module.progress[name].steps for name in ("critic", "generator")]
    assert steps == [3, 6]  # the critic of batches 2 and 3, 4 and 5, 6; the generator of all but 1


@pytest.mark.parametrize(("total", "planned"), [(4, None), (3, 4)])
def test_the_length_of_a_schedule_is_compared_with_the_steps_of_its_optimizer(total, planned):
    class Cycles(Adversarial):
        def configure_optimizers(self):
            both = super().configure_optimizers()
            return both, [{"scheduler": OneCycleLR(both[1], 1.0, total_steps=total), "interval": "step"}]

    module = Cycles(generator={"every_n_batches": 3})  # of 14 batches 4
    if planned is None:
        fit(module)
        return
    with pytest.raises(ValueError, match="training will step it 4 times"):
        fit(module)


def test_a_plateau_steps_by_its_metric():
    class Plateaus(Scheduled):
        def configure_optimizers(self):
            both = Adversarial.configure_optimizers(self)
            plateau = ReduceLROnPlateau(both[1], "train/loss", factor=0.5, patience=0)
            return both, [{"scheduler": plateau, "interval": "epoch"}]

        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.log("train/loss", 1.0)

    module = Plateaus()
    fit(module, epochs=3)
    assert module.halvings[::7] == [(0, 0), (0, 0), (0, 1)]


@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (1, 3), (3, 1), (3, 2), (5, 2)])
def test_planned_steps_are_those_of_a_training(every, accumulate):
    module = Adversarial(generator={"every_n_batches": every, "accumulate_grad_batches": accumulate})
    trainer = fit(module, epochs=3)
    assert trainer.global_step - 21 == module.optimizer_settings["generator"].num_steps(3, 7)
