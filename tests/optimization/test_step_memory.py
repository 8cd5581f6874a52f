from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from lightning_recall.benchmarks.measure import peak_tensor_bytes
from lightning_recall.models import ImageEmbedder
from lightning_recall.optimization.step_memory import batch_size_of, first_items, step_memory


class Module(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images)


def networks():
    convnet = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(32 * 16 * 16, 8)),
    )
    linear = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))
    resnet = ImageEmbedder("resnet10t", 32, pretrained=False)
    return {
        "convnet": (convnet, torch.randn(64, 3, 16, 16)),
        "linear": (linear, torch.randn(1000, 100)),
        "resnet": (resnet, torch.zeros(16, 3, 64, 64, dtype=torch.uint8)),
    }


@pytest.mark.parametrize("name", networks())
def test_the_estimate_is_near_the_memory_of_a_step(name):
    net, inputs = networks()[name]
    module, trainer = Module(net), Trainer(logger=False, enable_checkpointing=False, barebones=True)
    needed = step_memory(trainer, module, inputs, len(inputs))
    taken = peak_tensor_bytes(lambda: module(inputs).sum().backward())
    gradients = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
    assert needed.parameters_and_state == sum(
        p.numel() * p.element_size() for p in net.parameters()
    )  # no optimizer yet
    assert 0.6 < (needed.activations + gradients) / taken < 1.3
    assert step_memory(trainer, module, inputs, 2 * len(inputs)).activations == 2 * needed.activations


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        (lambda p: torch.optim.AdamW(p), 4),
        (lambda p: torch.optim.SGD(p, 0.1), 2),
        (lambda p: torch.optim.SGD(p, 0.1, 0.9), 3),
    ],
)
def test_an_optimizer_keeps_moments(optimizer, copies):
    module, trainer = Module(nn.Linear(3, 5)), Trainer(barebones=True)
    trainer.strategy._optimizers = [optimizer(module.parameters())]
    assert step_memory(trainer, module, torch.randn(4, 3), 4).parameters_and_state == copies * 4 * 20


def test_frozen_weights_have_no_gradients():
    module, trainer = Module(nn.Linear(3, 5)), Trainer(barebones=True)
    module.net.bias.requires_grad_(False)
    trainer.strategy._optimizers = [torch.optim.AdamW(module.parameters())]
    assert step_memory(trainer, module, torch.randn(4, 3), 4).parameters_and_state == 4 * (20 + 3 * 15)


def test_activations_exclude_buffers_and_are_counted_under_no_grad():
    class Scaled(Module):
        def __init__(self):
            super().__init__(nn.Linear(3, 5))
            self.register_buffer("scale", torch.ones(5))

        def forward(self, images):
            return self.net(images) * self.scale

    with torch.no_grad():
        needed = step_memory(Trainer(barebones=True), Scaled(), torch.randn(6, 3), 8)
    assert needed.activations == 8 * 3 * 4  # 8 images of 3 float32


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_have_the_precision_of_the_training(precision):
    autocast = []

    class Notes(Module):
        def forward(self, images):
            autocast.append(torch.is_autocast_enabled("cpu"))
            return self.net(images)

    trainer = Trainer(barebones=True, accelerator="cpu", precision=precision)
    step_memory(trainer, Notes(nn.Linear(3, 5)), torch.randn(4, 3), 4)
    assert autocast == [precision == "bf16-mixed"]


def test_random_numbers_buffers_and_gradients_are_unchanged():
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout())
    module, trainer = Module(net), Trainer(barebones=True)
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    step_memory(trainer, module, torch.randn(4, 3), 4)  # draws its input, and nothing more
    torch.set_rng_state(state)
    torch.randn(4, 3)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    step_memory(trainer, module, torch.randn(4, 3), 4)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Pair(NamedTuple):
    first: object
    second: object


def test_inputs_may_be_nests_of_any_kind():
    images = torch.randn(9, 5)
    inputs = UserDict(pair=Pair(images, None), more=[images, "text"], size=3)
    few = first_items(inputs, torch.device("cpu"))
    assert isinstance(few, UserDict)
    assert torch.equal(few["pair"].first, images[:4])
    assert torch.equal(few["more"][0], images[:4])
    assert (few["pair"].second, few["more"][1], few["size"]) == (None, "text", 3)
    assert torch.equal(inputs["pair"].first, images)  # as they were
    assert [batch_size_of(nest) for nest in (inputs, images, "text", [None, {"a": images}])] == [9, 9, 0, 9]


def test_a_mapping_needs_as_much_as_its_tensor():
    class OfMappings(Module):
        def forward(self, inputs):
            return self.net(inputs["images"])

    net, images = networks()["linear"]
    trainer = Trainer(logger=False, enable_checkpointing=False, barebones=True)
    expected = step_memory(trainer, Module(net), images, 500)
    assert step_memory(trainer, OfMappings(net), UserDict(images=images, name=None), 500) == expected
