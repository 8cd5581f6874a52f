"""Tiny networks and batches of two domains, and short trainings with them, for the tests of domain adaptation."""

import warnings

import torch
from pytorch_lightning import Trainer
from torch import distributed, nn

from lightning_recall.adaptation.models.images import Judgement

K, SIZE, LATENT, NOISE = 3, 4, 2, 3
PIXELS = 3 * SIZE * SIZE
GENERATOR = torch.Generator().manual_seed(7)
SOURCE = torch.randint(256, (3, 6, 3, SIZE, SIZE), dtype=torch.uint8, generator=GENERATOR)  # three batches of 6 images
LABELS = torch.randint(K, (3, 6), generator=GENERATOR)
TARGET = torch.randint(256, (3, 6, 3, SIZE, SIZE), dtype=torch.uint8, generator=GENERATOR)


class Encoder(nn.Module):
    """Features of 2 * LATENT numbers; with dropout, it draws from the global generator in training."""

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)

    def __init__(self, dropout=0.0):
        super().__init__()
        self.feature_dim = 2 * LATENT
        hidden = [nn.Linear(PIXELS, 5), nn.Tanh(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(5, self.feature_dim))

    def forward(self, images):
        return self.layers(images)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_dim = 2 * LATENT + K + 1 + NOISE
        self.layers = nn.Sequential(nn.Linear(self.input_dim, PIXELS), nn.Tanh())

    def forward(self, vectors):
        return self.layers(vectors).unflatten(1, (3, SIZE, SIZE))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 5), nn.Tanh())
        self.classes, self.embedding, self.source = nn.Linear(5, K), nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, images):
        features = self.layers(images)
        embedding = self.embedding(features)
        return Judgement(self.classes(features), embedding, self.source(embedding).squeeze(1))


class FeatureDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * LATENT, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, features):
        return self.layers(features).squeeze(1)


def four_networks(**kwargs):
    """Encoder, classifier, generator and discriminator of DM-ADA."""
    torch.manual_seed(0)
    return Encoder(**kwargs), nn.Linear(2 * LATENT, K), Generator(), Discriminator()


def three_networks(**kwargs):
    """Encoder, classifier and discriminator of DANN."""
    torch.manual_seed(0)
    return Encoder(**kwargs), nn.Linear(2 * LATENT, K), FeatureDiscriminator()


class Loader:
    """Gives each process its part of the batches, and resumes in the middle of an epoch."""

    def __init__(self, batch_size=6):
        self.position, self.batch_size = 0, batch_size

    def __len__(self):
        return len(SOURCE)

    def __iter__(self):
        several = distributed.is_initialized()
        rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        size = self.batch_size // world_size
        part = slice(rank * size, (rank + 1) * size)
        for position in range(self.position % len(SOURCE), len(SOURCE)):
            self.position = position + 1
            yield {"source": (SOURCE[position, part], LABELS[position, part]), "target": TARGET[position, part]}

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def fit(module, ckpt_path=None, epochs=2, loader=None, **kwargs):
    """Trains for two epochs of three batches in float64; returns the Trainer."""
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, **kwargs}
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "precision": "64-true", **settings}
    if settings["precision"] == "64-true":
        module.double()  # not by the Trainer: of a forked process it returns only the weights
    if "plugins" in settings:
        del settings["precision"]
    trainer = Trainer(**{"max_epochs": epochs, **settings})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no")
        trainer.fit(module, loader or Loader(), ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal_weights(module, expected, atol=0.0):
    """Compares the weights of a module with others, by name."""
    found = weights(module)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
