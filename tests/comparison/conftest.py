from pathlib import Path

import pytest
import torch

from lightning_recall.embedding_sets import EmbeddingSet

NUM_CLASSES, SIZE = 30, 5


@pytest.fixture
def two_sets():
    """Embeddings of the same 150 images by two models; the second separates the classes better."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(NUM_CLASSES * SIZE) % NUM_CLASSES + 100
    centres = torch.randn(NUM_CLASSES, 12, generator=generator)[labels - 100]
    noise = torch.randn(2, len(labels), 12, generator=generator)
    paths = [f"{label}/{i}.jpg" for i, label in enumerate(labels.tolist())]
    classes = [f"bird {label}" for label in labels.tolist()]
    ids = torch.arange(len(labels)) * 3

    def make(name, embeddings):
        return EmbeddingSet(
            Path(name), embeddings, ids, labels, paths, classes, model={"weights": f"{name}0123456789ab"}
        )

    return make("first", centres + 1.1 * noise[0]), make("second", centres + 0.9 * (noise[0] + noise[1]) / 1.4)
