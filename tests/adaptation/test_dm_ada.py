"""DM-ADA against a transcription of its losses by loops, with gradients by torch.autograd.grad."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from adaptation_training import (
    LABELS,
    LATENT,
    NOISE,
    PIXELS,
    SIZE,
    SOURCE,
    TARGET,
    K,
    Loader,
    assert_equal_weights,
    fit,
    four_networks,
    weights,
)
from pytorch_lightning import Callback
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn

from lightning_recall.adaptation.dm_ada import DMADAModule, DMADAWeights
from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.models.digits import (
    DigitDiscriminator,
    DigitEncoder,
    DigitGenerator,
    FeatureClassifier,
    GaussianEncoder,
)
from lightning_recall.adaptation.network_optimizers import NetworkOptimizer

WEIGHTS = DMADAWeights(kl=0.7, adversarial=0.5, target=0.4, mixed=0.6)
NAMES = ("discriminator", "generator", "classifier", "encoder")
MIXUPS = {
    "both": DomainMixup(),
    "pixel": DomainMixup(levels=["pixel"]),
    "feature": DomainMixup(levels=["feature"]),
    "none": None,
}
SEED = 4


class Recorded(DMADAModule):
    """Keeps the losses of each batch."""

    def logged(self, losses):
        self.recorded = [*getattr(self, "recorded", []), {name: value.item() for name, value in losses.items()}]
        return super().logged(losses)


def make(mixup="both", networks=None, **kwargs):
    settings = {"mixup": MIXUPS[mixup], "weights": WEIGHTS, "noise_dim": NOISE, "seed": SEED, **kwargs}
    return Recorded(*(networks or four_networks()), K, **settings)


def parts_of(networks):
    encoder, classifier, generator, discriminator = networks
    return {"discriminator": discriminator, "generator": generator, "classifier": classifier, "encoder": encoder}


# The transcription: letters of the docstring, one image at a time


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def cross_entropy(logits, labels):
    return mean(torch.log(row.exp().sum()) - row[label] for row, label in zip(logits, labels, strict=True))


def binary(logits, label):
    probabilities = [1 / (1 + torch.exp(-logit)) for logit in logits]
    return mean(-label * torch.log(p) - (1 - label) * torch.log(1 - p) for p in probabilities)


def distance(a, b):
    return (a - b + 1e-6).square().sum().sqrt()  # with the eps of torch's TripletMarginLoss


def triplet(mixed, source, target, ratio):
    near, far = (source, target) if ratio > 0.5 else (target, source)
    margin = abs(2 * ratio - 1)
    rows = zip(mixed, near, far, strict=True)
    return mean(torch.clamp(distance(m, n) - distance(m, f) + margin, min=0) for m, n, f in rows)


def kl(features):
    total = 0
    for row in features:
        mu, v = row[: len(row) // 2], row[len(row) // 2 :]
        total = total + sum(0.5 * (torch.exp(b) + a * a - 1 - b) for a, b in zip(mu, v, strict=True))
    return total / len(features)


def one_hot(label):
    row = torch.zeros(K + 1, dtype=torch.float64)
    row[label] = 1
    return row


def draws(number, mixup, size):
    """The ratio and the noise of a batch, in the order in which they are drawn."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + number)
    ratio = mixup.draw(generator) if mixup else 1.0
    return ratio, [torch.randn(size, NOISE, generator=generator).double() for _ in range(3)]


def forward(networks, number, mixup):
    """All that the losses are made of."""
    encoder, _, generator, _ = networks
    position = number % len(SOURCE)
    s, t, y = SOURCE[position].double() / 255, TARGET[position].double() / 255, LABELS[position]
    ratio, noise = draws(number, mixup, len(s))
    center, scale = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (encoder.mean, encoder.std))
    f_s, f_t = encoder((s - center) / scale), encoder((t - center) / scale)
    conditions = [torch.stack([one_hot(label) for label in y]), torch.stack([one_hot(K) for _ in y])]
    fakes = {"s": (f_s, conditions[0], noise[0]), "t": (f_t, conditions[1], noise[1])}
    if mixup and "feature" in mixup.levels:
        f_m = ratio * f_s + (1 - ratio) * f_t
        fakes["m"] = (f_m, ratio * conditions[0] + (1 - ratio) * conditions[1], noise[2])
    images = {name: generator(torch.cat(inputs, dim=1)) for name, inputs in fakes.items()}
    x_m = 2 * (ratio * s + (1 - ratio) * t) - 1 if mixup and "pixel" in mixup.levels else None
    return {"s": 2 * s - 1, "t": 2 * t - 1, "m": x_m, "y": y, "f_s": f_s, "f_t": f_t, "fakes": images, "ratio": ratio}


def loss_of_discriminator(networks, x):
    d = networks[3]
    real = d(x["s"])
    loss = cross_entropy(real.classes, x["y"]) + binary(real.source, 1)
    for fake in x["fakes"].values():
        loss = loss + binary(d(fake.detach()).source, 0)
    if x["m"] is not None:
        mixed = d(x["m"])
        loss = loss + binary(mixed.source, x["ratio"])
        loss = loss + triplet(mixed.embedding, real.embedding, d(x["t"]).embedding, x["ratio"])
    return loss


def loss_of(name, networks, x):
    _, classifier, _, d = networks
    of_classifier = cross_entropy(classifier(x["f_s"]), x["y"])
    if name == "classifier":
        return of_classifier
    classes = cross_entropy(d(x["fakes"]["s"]).classes, x["y"])
    mixed = binary(d(x["fakes"]["m"]).source, 1) if "m" in x["fakes"] else 0
    if name == "generator":
        return classes + binary(d(x["fakes"]["s"]).source, 1) + mixed
    others = classes + WEIGHTS.target * binary(d(x["fakes"]["t"]).source, 1) + WEIGHTS.mixed * mixed
    return WEIGHTS.kl * (kl(x["f_s"]) + kl(x["f_t"])) + of_classifier + WEIGHTS.adversarial * others


def step_by_hand(networks, optimizers, number, mixup):
    """Steps D; then G, C and F on gradients with the new D, at the weights before any of their steps."""
    parts, losses = parts_of(networks), {}
    x = forward(networks, number, mixup)
    for names in (["discriminator"], ["generator", "classifier", "encoder"]):
        for name in names:
            is_first = name == "discriminator"
            loss = loss_of_discriminator(networks, x) if is_first else loss_of(name, networks, x)
            parameters = list(parts[name].parameters())
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            losses[f"{name}_loss"] = loss.item()
        for name in names:
            optimizers[name].step()
    return losses


def by_hand(mixup="both", num_batches=6, make_optimizer=None, decay=1e-4):
    """The training of `fit` with the released optimizers, or others: state by name, and the losses of each batch."""
    networks = [network.double() for network in four_networks()]
    parts = parts_of(networks)
    released = partial(torch.optim.Adam, lr=5e-4, betas=(0.8, 0.999))
    optimizers = {name: (make_optimizer or released)(part.parameters()) for name, part in parts.items()}
    losses = []
    for number in range(num_batches):
        for name, optimizer in optimizers.items():
            is_constant = make_optimizer or name == "generator"
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] / (1 if is_constant else 1 + decay * number)
        losses.append(step_by_hand(networks, optimizers, number, MIXUPS[mixup]))
    return {f"{name}.{key}": v for name, part in parts.items() for key, v in weights(part).items()}, losses


def plain_sgd(lr=1.0, **kwargs):
    sgd = partial(torch.optim.SGD, lr=lr)
    return {name: NetworkOptimizer(sgd, lr_scheduler=None, **kwargs) for name in NAMES}


@pytest.mark.parametrize("mixup", MIXUPS)
def test_losses_and_gradients_of_a_step_are_those_of_the_transcription(mixup):
    module = make(mixup, optimizers=plain_sgd())
    start = weights(module)
    fit(module, max_steps=4)
    sgd = partial(torch.optim.SGD, lr=1.0)
    expected, (losses, *_) = by_hand(mixup, make_optimizer=sgd, num_batches=1)
    assert module.recorded == [pytest.approx({"loss": losses["encoder_loss"], **losses}, abs=1e-10, rel=0)]
    for name, value in weights(module).items():  # SGD with a rate of 1: the difference is the gradient
        gradient, expected_gradient = start[name].double() - value, start[name].double() - expected[name]
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-10, rtol=0)
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("mixup", MIXUPS)
def test_a_training_takes_the_steps_of_the_transcription_with_the_released_optimizers(mixup):
    module = make(mixup)
    trainer = fit(module)
    expected, losses = by_hand(mixup)
    assert_equal_weights(module, expected, atol=1e-10)
    assert [one["encoder_loss"] for one in module.recorded] == pytest.approx([one["encoder_loss"] for one in losses])
    assert trainer.global_step == 4 * 6  # four optimizers, six batches
    assert trainer.callback_metrics["train/generator_loss"].item() == pytest.approx(losses[-1]["generator_loss"])
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in zip(NAMES, trainer.optimizers, strict=True)}
    decayed = 5e-4 / (1 + 1e-4 * 6)
    assert rates == pytest.approx({**dict.fromkeys(NAMES, decayed), "generator": 5e-4}, rel=1e-12)


def test_the_mixups_differ():
    ends = [by_hand(mixup, num_batches=2)[0]["encoder.layers.1.weight"] for mixup in MIXUPS]
    for number, end in enumerate(ends):
        assert all((end - other).abs().max() > 1e-6 for other in ends[:number])


class Phases(Callback):
    """At each step: the networks whose weights have changed since the last one, and those with gradients of D."""

    def __init__(self):
        self.changed, self.names = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = weights(pl_module)
        self.gradients = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        name = NAMES[trainer.optimizers.index(optimizer)]
        now = weights(pl_module)
        self.changed.append(
            {key.split(".")[0] for key, value in now.items() if not torch.equal(value, self.before[key])}
        )
        self.before, self.names = now, [*self.names, name]
        gradients = [p.grad.clone() for p in pl_module.discriminator.parameters()]
        if name == "discriminator":
            self.gradients = gradients
        assert all(map(torch.equal, gradients, self.gradients)), f"the step of the {name} changed D's gradient"


def test_each_step_changes_its_own_network_and_only_the_first_changes_the_gradient_of_the_discriminator():
    phases = Phases()
    fit(make(), callbacks=[phases], epochs=1)
    assert phases.names == [*NAMES] * 3
    assert phases.changed == [set(), *({name} for name in NAMES[:3])] * 3  # seen before the next step


def test_the_loss_of_the_discriminator_does_not_reach_the_other_networks():
    class Checked(Recorded):
        def discriminator_loss(self, parts, fakes, ratio):
            loss = super().discriminator_loss(parts, fakes, ratio)
            for network in (self.encoder, self.generator, self.classifier):
                found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
                assert set(found) == {None}
            self.checks = getattr(self, "checks", 0) + 1
            return loss

    module = Checked(*four_networks(), K, noise_dim=NOISE)
    fit(module, epochs=1)
    assert module.checks == 3


def test_the_discriminator_needs_gradients_again_after_a_step_and_after_an_error():
    class Fails(Recorded):
        def other_losses(self, parts, features, fakes):
            assert not any(p.requires_grad for p in self.discriminator.parameters())
            raise RuntimeError("in the second phase")

    module = Fails(*four_networks(), K, noise_dim=NOISE)
    with pytest.raises(RuntimeError, match="in the second phase"):
        fit(module)
    assert all(p.requires_grad for p in module.discriminator.parameters())


def test_a_frozen_layer_of_the_discriminator_stays_frozen():
    networks = four_networks()
    networks[3].embedding.requires_grad_(False)
    module = make(networks=networks)
    start = weights(module)
    fit(module)
    changed = {name for name, value in weights(module).items() if not torch.equal(value, start[name].double())}
    unchanged = {name for name in start if name.startswith("discriminator.embedding")}
    assert changed == set(start) - unchanged
    assert not networks[3].embedding.weight.requires_grad


def test_optimizers_have_their_own_clipping_accumulation_and_cadence():
    """Steps counted, and the generator's gradient clipped."""
    norms = {}

    class Steps(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = weights(pl_module)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for name in NAMES:
                moved = [v - self.before[key] for key, v in weights(pl_module).items() if key.startswith(name)]
                norms.setdefault(name, []).append(torch.cat([part.flatten() for part in moved]).norm().item())

    sgd = partial(torch.optim.SGD, lr=1.0)
    options = {
        "generator": {"gradient_clip_val": 1e-3},
        "encoder": {"accumulate_grad_batches": 2},
        "classifier": {"every_n_batches": 3},
    }
    optimizers = {name: NetworkOptimizer(sgd, lr_scheduler=None, **given) for name, given in options.items()}
    trainer = fit(make(optimizers=optimizers), callbacks=[Steps()])
    assert norms["generator"] == pytest.approx([1e-3] * 6, rel=1e-2)
    assert [norm > 0 for norm in norms["encoder"]] == [False, True, True] * 2  # the epoch's last step has one batch
    assert [norm > 0 for norm in norms["classifier"]] == [False, False, True] * 2
    assert all(norm > 1e-4 for norm in norms["discriminator"])
    assert trainer.global_step == 6 + 6 + 4 + 2


def test_nan_is_logged_and_not_hidden():
    module = make(weights=DMADAWeights(kl=0.0))
    module.mean = (float("nan"),) * 3  # so that all features are NaN
    trainer = fit(module, max_steps=4)
    assert trainer.callback_metrics["train/loss"].isnan()
    assert trainer.callback_metrics["train/generator_loss"].isnan()


def test_bf16_mixed_trains_near_float32():
    ends = []
    for precision in ("32-true", "bf16-mixed"):
        module = make(optimizers=plain_sgd(lr=0.01))
        fit(module, precision=precision)
        ends.append((weights(module), module.recorded[-1]["loss"]))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=0.03)
    assert ends[0][1] != ends[1][1]
    assert all(value.dtype == torch.float32 for value in ends[1][0].values())


class ScaledOnly(MixedPrecision):
    """The gradient scaler of mixed precision, whose scale doubles after each step, without low precision."""

    def __init__(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
        super().__init__("16-mixed", "cpu", scaler=scaler)

    def forward_context(self):
        return nullcontext()


def test_a_gradient_scaler_changes_nothing():
    plain, scaled = make(), make()
    plugin = ScaledOnly()
    trainer = fit(scaled, plugins=[plugin])
    fit(plain)
    assert plugin.scaler.get_scale() == 1024 * 2**trainer.global_step
    assert_equal_weights(scaled, weights(plain), atol=1e-9)


@pytest.mark.parametrize("mixup", ["both", "none"])
def test_two_processes_take_the_steps_of_one(mixup):
    plain, parallel = make(mixup), make(mixup)
    fit(plain)
    fit(parallel, devices=2, strategy="ddp_fork")
    assert_equal_weights(parallel, weights(plain), atol=1e-9)


def test_the_defaults_are_those_of_the_released_code():
    encoder, classifier, _, discriminator = four_networks()
    module = DMADAModule(encoder, classifier, nn.Linear(2 * LATENT + K + 1 + 512, PIXELS), discriminator, K)
    assert vars(module.weights) == {"kl": 1.0, "adversarial": 0.1, "target": 0.3, "mixed": 0.3}
    assert vars(module.mixup) == {"alpha": 2.0, "clip": 0.1, "levels": ("pixel", "feature")}
    assert module.noise_dim == 512


# What a user can do wrong


def digits(input_dim=None, num_classes=K, **kwargs):
    encoder = GaussianEncoder(DigitEncoder(4), 6)
    generator = DigitGenerator(input_dim or 12 + K + 1 + NOISE, 4)
    networks = encoder, FeatureClassifier(12, K), generator, DigitDiscriminator(num_classes, 4, 5)
    return DMADAModule(*networks, num_classes=K, noise_dim=NOISE, **kwargs)


@pytest.mark.parametrize(
    ("make_module", "message"),
    [
        (lambda: digits(input_dim=20), r"input_dim of the generator is 20, but .* 12 \+ 4 \+ 3 = 19 numbers"),
        (lambda: digits(num_classes=5), "num_classes of the discriminator .* is 5, but that of DMADAModule is 3"),
        (lambda: digits(optimizer=torch.optim.Adam), "optimizer of the module has no effect.*use `optimizers`"),
        (lambda: digits(head_lr=0.1), "head_lr has no effect.*learning rates in `optimizers`"),
        (lambda: digits(gradient_clip_val=1.0), "gradient_clip_val of the module has no effect"),
        (lambda: digits(accumulate_grad_batches=2), "accumulate_grad_batches of the module has no effect"),
        (lambda: digits(optimizers={"critic": NetworkOptimizer()}), r"keys discriminator, .*, got \['critic'\]"),
        (lambda: digits(optimizers={"encoder": torch.optim.SGD}), "must be a NetworkOptimizer, got type"),
        (lambda: DMADAModule(*four_networks(), K, noise_dim=-1), "noise_dim must be at least 0, got -1"),
        (lambda: DMADAWeights(kl=-1.0), "weight kl must be a finite number of at least 0, got -1"),
        (lambda: DMADAWeights(mixed=float("nan")), "weight mixed must be a finite number"),
    ],
)
def test_wrong_arguments_raise(make_module, message):
    with pytest.raises(ValueError, match=message):
        make_module()


class Returns(nn.Module):
    """A network whose output is changed."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, inputs):
        return self.change(self.network(inputs))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (1, lambda logits: logits[:, :2], r"classifier must return .* \(6, 3\) .* a tensor \(6, 2\)"),
        (2, lambda images: images[..., :2], r"generator must return images of the size of the batch, \(6, 3, 4, 4\)"),
        (3, lambda j: j._replace(classes=j.classes[:, :2]), "discriminator must return logits of shape"),
        (3, lambda j: j._replace(source=j.source[:, None]), r"one domain logit per image.*remove the last dim"),
    ],
)
def test_outputs_that_do_not_fit_raise(position, change, message):
    networks = [*four_networks()]
    networks[position] = Returns(networks[position], change)
    with pytest.raises(ValueError, match=message):
        fit(make(networks=networks))


def test_one_image_and_batch_norm_raise_one_sentence():
    batches = [{"source": (torch.zeros(1, 3, 32, 32), torch.zeros(1).long()), "target": torch.zeros(1, 3, 32, 32)}]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    with pytest.raises(ValueError, match="one source image on this process, but BatchNorm cannot be trained"):
        fit(digits(), loader=loader)


def test_one_image_without_batch_norm_is_fine():
    fit(make(), loader=Loader(batch_size=1), max_steps=4)


def test_unequal_batches_are_fine_without_mixup_and_raise_with_it():
    batches = [{"source": (SOURCE[0], LABELS[0]), "target": TARGET[0, :4]}]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    fit(make("none"), loader=loader, max_steps=4)
    with pytest.raises(
        ValueError, match="equally many images of both domains, got 6 of the source and 4 of the target"
    ):
        fit(make("both"), loader=loader, max_steps=4)


# Pictures


def test_example_images_hold_both_domains_their_mixes_and_what_is_generated_from_them():
    module = make().eval()
    module.train()
    module.encoder.eval()  # a frozen encoder
    state, source, target = weights(module), SOURCE[0], TARGET[0]
    images = module.example_images(source, LABELS[0], target, ratios=[0.2, 1.0])
    assert [*images] == ["source", "target", "mixed 0.2", "mixed 1"] + [
        f"generated {name}" for name in ("source", "target", "mixed 0.2", "mixed 1")
    ]
    assert all(part.dtype == torch.uint8 and part.shape == (6, 3, SIZE, SIZE) for part in images.values())
    assert torch.equal(images["source"], source)
    assert torch.equal(images["target"], target)
    assert torch.equal(images["mixed 1"], source)
    mixed = torch.round(0.2 * source.double() + 0.8 * target.double())
    assert (images["mixed 0.2"].double() - mixed).abs().max() <= 1  # rounding
    assert torch.equal(images["generated mixed 1"], images["generated source"])
    assert_equal_weights(module, state)
    assert (module.training, module.generator.training, module.encoder.training) == (True, True, False)


def test_a_generated_example_is_the_generators_output():
    module = make()
    images = module.example_images(SOURCE[0], LABELS[0], TARGET[0], ratios=[0.2])
    f_s, f_t = (module.encode(part.float() / 255) for part in (SOURCE[0], TARGET[0]))
    conditions = [torch.stack([one_hot(label) for label in labels]).float() for labels in (LABELS[0], [K] * 6)]
    noise = torch.randn(6, NOISE, generator=torch.Generator().manual_seed(SEED))
    mixed = [0.2 * s + 0.8 * t for s, t in ((f_s, f_t), conditions)]
    expected = (module.generator(torch.cat([*mixed, noise], dim=1)) + 1) * 127.5
    assert (images["generated mixed 0.2"].float() - expected).abs().max() <= 0.51
    assert not torch.equal(images["generated mixed 0.2"], images["generated source"])


def test_example_images_are_those_of_evaluation_mode():
    module = digits()  # with BatchNorm, whose statistics would change
    state, images = weights(module), torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    found = [
        part.example_images(images, torch.arange(4) % K, images.flip(0), ratios=[0.3])
        for part in (module.train(), module.eval())
    ]
    assert all(torch.equal(found[0][name], part) for name, part in found[1].items())
    assert_equal_weights(module, state)


def test_all_ratios_of_example_images_are_from_0_to_1():
    with pytest.raises(ValueError, match=r"ratio must be from 0 to 1, got 1.5"):
        make().example_images(SOURCE[0], LABELS[0], TARGET[0], ratios=[1.5])
