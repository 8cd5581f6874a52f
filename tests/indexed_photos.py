"""Photographs, embeddings of them as `predict` writes them, and their model, for tests of index and search."""

import shutil

import torch
from conftest import draw
from torch.utils.data import DataLoader

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall._lightning import Trainer
from lightning_recall.callbacks import EmbeddingWriter
from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.models import SmallConvNet

CLASSES = ("cat", "dog")
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def make_module(seed):
    torch.manual_seed(seed)
    embedder = ImageEmbedder(SmallConvNet(3, image_size=16, widths=(4, 4, 4)), embedding_dim=8)
    module = RetrievalModule(embedder, RecallAtKLoss())
    module.image_transforms = ImageTransforms(size=16, resize=16)
    module.similarity_threshold = {"similarity": 0.5, "false_accept_rate": 1e-3}
    return module.eval()


def predict(module, root, paths, folder):
    """Embeds images as `lightning-recall predict` does."""
    labels = [CLASSES.index(path.split("/")[0]) for path in paths]
    data = ImageFiles(root, paths, labels, transforms=module.image_transforms)
    data.class_names = CLASSES
    trainer = Trainer(callbacks=[EmbeddingWriter(str(folder))], **QUIET)
    trainer.predict(module, DataLoader(data, batch_size=4), return_predictions=False)
    trainer.save_checkpoint(folder.parent / "model.ckpt")


def make_photos(root):
    """A folder with 12 photographs, embeddings of the first 3 of each class and their model."""
    for name in CLASSES:
        for number in range(6):
            draw(root / "photos" / name / f"{number}.png")
    paths = [f"{name}/{number}.png" for name in CLASSES for number in range(3)]
    predict(make_module(1), root / "photos", paths, root / "embeddings")
    return root


def copy_photos(made, root):
    """A copy of what `make_photos` has made, which a test may change."""
    shutil.copytree(made, root)
    about = root / "embeddings" / "about.json"
    about.write_text(about.read_text().replace(str(made), str(root)))
    return root


def embed(shop, files):
    """Embeddings of image files by the module itself, one at a time."""
    module = RetrievalModule.from_pretrained(shop / "embeddings" / "model")
    with torch.no_grad():
        return torch.cat([module(module.preprocess(file)[None]) for file in files])
