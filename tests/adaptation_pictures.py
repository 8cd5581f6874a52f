"""Small domains, networks and trainings for the pictures of an adaptation."""

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.adaptation.dm_ada import DMADAModule
from lightning_recall.adaptation.models import FeatureClassifier, FeatureDiscriminator
from lightning_recall.adaptation.models.images import Judgement

K, SIZE, NOISE = 3, 4, 2


class Images(Dataset):
    """Items (image, label); with `noise`, each reading draws from torch's global generator."""

    def __init__(self, seed, count=20, noise=False, labelled=True):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
        self.labels = torch.arange(count) % K if labelled else torch.full((count,), -1)
        self.noise = noise

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].float() / 255
        return (0.9 * image + 0.1 * torch.rand(()) if self.noise else image), self.labels[index]


class Encoder(nn.Sequential):
    """Batch statistics and dropout, which would show a disturbed training."""

    feature_dim = 8

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * SIZE**2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))


class Generator(nn.Sequential):
    def __init__(self):
        layers = nn.Linear(8 + K + 1 + NOISE, 3 * SIZE**2), nn.BatchNorm1d(3 * SIZE**2), nn.Tanh()
        super().__init__(*layers, nn.Unflatten(1, (3, SIZE, SIZE)))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, K + 4 + 1))

    def forward(self, images):
        outputs = self.layers(images)
        return Judgement(outputs[:, :K], outputs[:, K:-1], outputs[:, -1])


def dm_ada(seed=0):
    torch.manual_seed(seed)
    return DMADAModule(Encoder(), FeatureClassifier(8, K, 4), Generator(), Discriminator(), K, noise_dim=NOISE)


def dann(seed=0):
    torch.manual_seed(seed)
    return DANNModule(Encoder(), FeatureClassifier(8, K, 4), FeatureDiscriminator(8, [4], norm=None), K)


def loaders(shuffle=True, batch_size=8, labelled=True):
    """Training and evaluation dataloaders."""
    train = {
        "source": DataLoader(Images(0, noise=True), batch_size, shuffle, drop_last=True),
        "target": DataLoader(Images(1, noise=True), batch_size, shuffle, drop_last=True),
    }
    evaluation = {"source": DataLoader(Images(2), 6), "target": DataLoader(Images(3, labelled=labelled), 6)}
    return CombinedLoader(train, "min_size"), evaluation


def trainer_of(folder, *callbacks, logger=False, **kwargs):
    quiet = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    settings = {"accelerator": "cpu", "devices": 1, "logger": logger, **quiet, **kwargs}
    return Trainer(default_root_dir=folder, callbacks=[*callbacks], **settings)


def pictures(folder):
    """Names of the pictures of a run."""
    return sorted(path.name for path in folder.rglob("*.png"))
