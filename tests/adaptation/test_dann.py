"""DANN and its mixup against a transcription by loops, whose reversed gradients are put together by hand."""

import math
from functools import partial

import pytest
import torch
from adaptation_training import (
    LABELS,
    LATENT,
    SIZE,
    SOURCE,
    TARGET,
    K,
    Loader,
    assert_equal_weights,
    fit,
    three_networks,
    weights,
)
from torch import nn

from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.adaptation.domain_mixup import DomainMixup

SEED, RATE = 5, 0.5
MIXUPS = {
    "both": DomainMixup(clip=0.3),
    "pixel": DomainMixup(levels=["pixel"]),
    "feature": DomainMixup(levels=["feature"]),
    "none": None,
}
SETTINGS = {"domain_weight": 0.7, "mixup_weight": 0.4, "reversal_gamma": 6.0}


class Recorded(DANNModule):
    """Keeps the losses of each batch."""

    def logged(self, losses):
        self.recorded = [*getattr(self, "recorded", []), {name: value.item() for name, value in losses.items()}]
        return super().logged(losses)


def make(mixup="both", networks=None, **kwargs):
    settings = {"optimizer": partial(torch.optim.SGD, lr=RATE), "seed": SEED, **SETTINGS, **kwargs}
    return Recorded(*(networks or three_networks()), K, MIXUPS[mixup], **settings)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def cross_entropy(logits, labels):
    return mean(torch.log(row.exp().sum()) - row[label] for row, label in zip(logits, labels, strict=True))


def binary(logits, label):
    probabilities = [1 / (1 + torch.exp(-logit)) for logit in logits]
    return mean(-label * torch.log(p) - (1 - label) * torch.log(1 - p) for p in probabilities)


def losses_by_hand(networks, number, mixup, soft):
    encoder, classifier, discriminator = networks
    position = number % len(SOURCE)
    s, t, y = SOURCE[position].double() / 255, TARGET[position].double() / 255, LABELS[position]
    center, scale = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (encoder.mean, encoder.std))

    def encode(images):
        return encoder((images - center) / scale)

    f_s, f_t = encode(s), encode(t)
    losses = {
        "class_loss": cross_entropy(classifier(f_s), y),
        "domain_loss": binary(discriminator(f_s), 1) + binary(discriminator(f_t), 0),
    }
    if mixup is not None:
        ratio = mixup.draw(torch.Generator().manual_seed(SEED * 1_000_003 + number))
        mixed = {"feature": ratio * f_s + (1 - ratio) * f_t, "pixel": encode(ratio * s + (1 - ratio) * t)}
        label = ratio if soft else int(ratio)
        losses["mixup_loss"] = sum(binary(discriminator(mixed[level]), label) for level in mixup.levels)
    return losses


def by_hand(mixup="both", num_batches=6, soft=True, total=6):
    """State by name, and the losses of each batch. soft=False: the released code's defect."""
    networks = [network.double() for network in three_networks()]
    recorded = []
    for number in range(num_batches):
        losses = losses_by_hand(networks, number, MIXUPS[mixup], soft)
        domains = SETTINGS["domain_weight"] * losses["domain_loss"]
        domains = domains + SETTINGS["mixup_weight"] * losses.get("mixup_loss", 0)
        alpha = 2 / (1 + math.exp(-SETTINGS["reversal_gamma"] * number / total)) - 1
        moves = []
        for network, factor in zip(networks, (-alpha, 0, 1), strict=True):
            parameters = list(network.parameters())
            of_classes = torch.autograd.grad(losses["class_loss"], parameters, retain_graph=True, allow_unused=True)
            of_domains = torch.autograd.grad(domains, parameters, retain_graph=True, allow_unused=True)
            for parameter, *parts in zip(parameters, of_classes, of_domains, strict=True):
                a, b = (torch.zeros_like(parameter) if part is None else part for part in parts)
                moves.append((parameter, a + factor * b))
        with torch.no_grad():
            for parameter, gradient in moves:
                parameter -= RATE * gradient
        recorded.append({name: value.item() for name, value in losses.items()})
        recorded[-1]["loss"] = recorded[-1]["class_loss"] + domains.item()
    names = ("encoder", "classifier", "discriminator")
    state = {f"{n}.{key}": v for n, part in zip(names, networks, strict=True) for key, v in weights(part).items()}
    return state, recorded


@pytest.mark.parametrize("mixup", MIXUPS)
def test_losses_and_steps_are_those_of_the_transcription(mixup):
    module = make(mixup)
    trainer = fit(module)
    expected, losses = by_hand(mixup)
    assert module.recorded == [pytest.approx(one, abs=1e-10, rel=0) for one in losses]
    assert_equal_weights(module, expected, atol=1e-10)
    assert trainer.global_step == 6
    assert trainer.callback_metrics["train/domain_loss"].item() == pytest.approx(losses[-1]["domain_loss"])


def test_the_mixups_differ():
    ends = [by_hand(mixup)[0]["encoder.layers.1.weight"] for mixup in MIXUPS]
    for number, end in enumerate(ends):
        assert all((end - other).abs().max() > 1e-4 for other in ends[:number])


def test_the_label_of_a_mix_is_soft():
    """The released code casts it to an integer: all mixes count as target."""
    module = make("both")
    fit(module)
    _, soft = by_hand("both")
    _, hard = by_hand("both", soft=False)
    assert module.recorded[0]["mixup_loss"] == pytest.approx(soft[0]["mixup_loss"], abs=1e-10, rel=0)
    assert abs(soft[0]["mixup_loss"] - hard[0]["mixup_loss"]) > 0.01


def test_the_strength_of_the_reversal_rises_with_the_batches_of_the_training():
    short, long = make("none"), make("none")
    fit(short, epochs=1)
    fit(long, epochs=2)
    expected = by_hand("none", num_batches=3, total=3)[0]
    assert_equal_weights(short, expected, atol=1e-10)


def test_the_strength_of_the_reversal_counts_batches_also_if_gradients_are_accumulated():
    class Progress(Recorded):
        def logged(self, losses):
            self.fractions = [*getattr(self, "fractions", []), self.training_progress()]
            return super().logged(losses)

    module = Progress(*three_networks(), K, accumulate_grad_batches=3)
    fit(module)
    assert module.fractions == pytest.approx([number / 6 for number in range(6)])
    module = Progress(*three_networks(), K, accumulate_grad_batches=3)
    fit(module, epochs=-1, max_steps=2)  # of 3 batches each
    assert module.fractions == pytest.approx([0, 0, 1 / 2, 1 / 2, 1 / 2, 1])  # after each batch


def test_a_training_without_end_raises():
    with pytest.raises(ValueError, match="DANN needs the length of the training"):
        fit(make(), epochs=-1)


def test_a_training_of_some_steps_has_a_length():
    module = make("none")
    fit(module, epochs=-1, max_steps=6)
    assert_equal_weights(module, by_hand("none")[0], atol=1e-10)


def test_accumulated_gradients_are_those_of_the_batches_averaged():
    module = make("none", accumulate_grad_batches=3, gradient_clip_val=0.01)
    start = weights(module)
    trainer = fit(module, epochs=1)
    assert trainer.global_step == 1
    moved = torch.cat([(v - start[name]).flatten() for name, v in weights(module).items()])
    assert moved.norm().item() == pytest.approx(0.01 * RATE, rel=1e-3)


@pytest.mark.parametrize("mixup", ["both", "none"])
def test_two_processes_take_the_steps_of_one(mixup):
    plain, parallel = make(mixup), make(mixup)
    fit(plain)
    fit(parallel, devices=2, strategy="ddp_fork")
    assert_equal_weights(parallel, weights(plain), atol=1e-9)


def test_bf16_mixed_trains_near_float32():
    ends = []
    for precision in ("32-true", "bf16-mixed"):
        module = make()
        fit(module, precision=precision)
        ends.append(module.recorded[-1]["loss"])
    assert ends[0] == pytest.approx(ends[1], rel=0.03)
    assert ends[0] != ends[1]


def test_nan_is_logged_and_not_hidden():
    module = make()
    module.mean = (float("nan"),) * 3  # so that all features are NaN
    trainer = fit(module, epochs=1)
    assert all(trainer.callback_metrics[f"train/{name}"].isnan() for name in ("loss", "domain_loss", "mixup_loss"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain_weight": -1.0}, "domain_weight must be a finite number of at least 0, got -1"),
        ({"mixup_weight": float("nan")}, "mixup_weight must be a finite number"),
        ({"reversal_gamma": 0.0}, "reversal_gamma must be a finite number above 0, got 0"),
    ],
)
def test_wrong_arguments_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_outputs_that_do_not_fit_raise():
    encoder, classifier, discriminator = three_networks()
    with pytest.raises(ValueError, match=r"one domain logit per image, shape \(6,\), got a tensor \(6, 1\): remove"):
        fit(make(networks=(encoder, classifier, nn.Linear(2 * LATENT, 1))))
    with pytest.raises(ValueError, match=r"classifier must return .* \(6, 3\) .* a tensor \(6, 4\)"):
        fit(make(networks=(encoder, nn.Linear(2 * LATENT, 4), discriminator)))


def test_one_image_and_batch_norm_raise_one_sentence():
    encoder, classifier, _ = three_networks()
    discriminator = nn.Sequential(nn.Linear(2 * LATENT, 2), nn.BatchNorm1d(2), nn.Flatten(0))
    with pytest.raises(ValueError, match="one source image on this process, but BatchNorm cannot be trained"):
        fit(make(networks=(encoder, classifier, discriminator)), loader=Loader(batch_size=1))
    fit(make(), loader=Loader(batch_size=1))


def test_example_images_hold_both_domains_and_their_mixes():
    images = make("none").example_images(SOURCE[0], LABELS[0], TARGET[0] / 255, ratios=[0.25])
    assert [*images] == ["source", "target", "mixed 0.25"]
    assert all(part.dtype == torch.uint8 and part.shape == (6, 3, SIZE, SIZE) for part in images.values())
    assert torch.equal(images["target"], TARGET[0])
    mixed = 0.25 * SOURCE[0].double() + 0.75 * TARGET[0].double()
    assert (images["mixed 0.25"].double() - mixed).abs().max() <= 0.51
