from functools import partial

import pytest
import torch
from adaptation_training import (
    LABELS,
    SOURCE,
    TARGET,
    Encoder,
    K,
    Loader,
    assert_equal_weights,
    fit,
    three_networks,
    weights,
)
from torch import nn
from torch.utils.data import DataLoader

from lightning_recall.adaptation.source_only import SourceOnlyModule


def make(networks=None, **kwargs):
    networks = networks or three_networks()[:2]
    return SourceOnlyModule(*networks, K, optimizer=partial(torch.optim.SGD, lr=0.5), **kwargs)


def by_hand():
    encoder, classifier = (network.double() for network in three_networks()[:2])
    center, scale = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (encoder.mean, encoder.std))
    parameters = [*encoder.parameters(), *classifier.parameters()]
    for images, labels in [*zip(SOURCE, LABELS, strict=True)] * 2:
        rows = classifier(encoder((images.double() / 255 - center) / scale)).softmax(1)
        loss = -sum(torch.log(row[label]) for row, label in zip(rows, labels, strict=True)) / len(labels)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.5 * gradient
    networks = {"encoder": encoder, "classifier": classifier}
    return {f"{name}.{key}": v for name, part in networks.items() for key, v in weights(part).items()}, loss.item()


def test_steps_are_those_of_the_cross_entropy_of_the_source():
    module = make()
    trainer = fit(module)
    expected, loss = by_hand()
    assert_equal_weights(module, expected, atol=1e-10)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(loss)


def test_target_images_change_nothing():
    batches = [{"source": (SOURCE[i], LABELS[i]), "target": TARGET[i].flip(0) // 2} for i in range(3)]
    module, other = make(), make()
    fit(module)
    fit(other, loader=DataLoader(batches, batch_size=None))
    assert_equal_weights(other, weights(module))


def test_two_processes_take_the_steps_of_one():
    plain, parallel = make(), make()
    fit(plain)
    fit(parallel, devices=2, strategy="ddp_fork")
    assert_equal_weights(parallel, weights(plain), atol=1e-9)


def test_outputs_and_batches_that_do_not_fit_raise():
    with pytest.raises(ValueError, match=r"classifier must return .* \(6, 3\) .* a tensor \(6, 5\)"):
        fit(make((Encoder(), nn.Linear(4, 5))))
    normed = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, K))
    with pytest.raises(ValueError, match="one source image on this process, but BatchNorm"):
        fit(make((Encoder(), normed)), loader=Loader(batch_size=1))
    fit(make(), loader=Loader(batch_size=1))


def test_example_images_hold_both_domains():
    images = make().example_images(SOURCE[0], LABELS[0], TARGET[0] / 255, ratios=[0.25])
    assert [*images] == ["source", "target"]
    assert torch.equal(images["source"], SOURCE[0])
    assert torch.equal(images["target"], TARGET[0])
