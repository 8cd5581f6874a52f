"""Loads saved models, and embeds image files with them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_recall.callbacks.embedding_state import fingerprint
from lightning_recall.checks import first_line
from lightning_recall.indexes.folder import SearchIndex, check_same_model
from lightning_recall.modules import RetrievalModule

BATCH_SIZE = 32
"""images in one pass of the model"""


class EmbeddedFiles(NamedTuple):
    """Embeddings of the image files that could be read.

    embeddings: (n, D) float32.
    files: path of each.
    unreadable: path of a file that could not be read -> why.
    """

    embeddings: Tensor
    files: list[str]
    unreadable: dict[str, str]


def load_model(path: Path, trust: Sequence[str] = ()) -> RetrievalModule:
    """Loads a module to the CPU, and puts it into evaluation mode.

    Args:
        path: folder written by `save_pretrained`, or a checkpoint.
        trust: classes or packages that a folder may build; see `RetrievalModule.from_pretrained`.

    Raises:
        ValueError: for a damaged folder, and a file that is not a checkpoint of RetrievalModule.
        OSError: if there is no such file.
    """
    try:
        module: RetrievalModule
        if path.is_dir():
            module = RetrievalModule.from_pretrained(path, trust=trust)
        else:
            module = RetrievalModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, KeyError, EOFError, TypeError) as error:
        is_unnamed = isinstance(error, (KeyError, EOFError))  # their texts are bare keys, or empty
        reason = "it is damaged, or not from Lightning" if is_unnamed else first_line(error)
        raise ValueError(f"{path} is not a checkpoint of RetrievalModule: {reason}.") from error
    return module.eval()


def model_of(index: SearchIndex, trust: Sequence[str] = ()) -> RetrievalModule:
    """The model of an index, on the GPU if there is one.

    Raises:
        ValueError: if the index has none, or its folder `model` was replaced by that of another model.
    """
    if index.model_folder is None:
        raise ValueError(
            f"{index.path} has no model, so that it cannot embed images: pass embeddings (.npz, .safetensors or a "
            "folder of them), or build the index with --model FOLDER_OR_CKPT."
        )
    module = load_model(index.model_folder, trust)
    check_same_model(index.manifest.weights, fingerprint(module.state_dict()), index.model_folder)
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def embed_files(module: RetrievalModule, files: Sequence[str]) -> EmbeddedFiles:
    """Embeds image files exactly as `predict` does, with test-time augmentation; shows a progress bar.

    Raises:
        ValueError: if the module does not know how to preprocess images.
    """
    if module.image_transforms is None and files:
        module.preprocess(files[0])  # raises the error that says what to do
    embeddings: list[Tensor] = []
    readable: list[str] = []
    unreadable: dict[str, str] = {}
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(files), desc="Embedding", unit=" images", delay=2, leave=False) as bar,
    ):
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            images = dict(zip(batch, pool.map(lambda file: read(module, file), batch), strict=True))
            for file, image in images.items():
                if isinstance(image, str):
                    unreadable[file] = image
                else:
                    readable.append(file)
            embeddings += embed_images(module, [image for image in images.values() if isinstance(image, Tensor)])
            bar.update(len(batch))
    return EmbeddedFiles(torch.stack(embeddings) if embeddings else torch.zeros(0, 0), readable, unreadable)


def read(module: RetrievalModule, file: str) -> Tensor | str:
    """Image (C, H, W) uint8 as the module takes it; the reason, if the file cannot be read."""
    try:
        return module.preprocess(file)
    except Exception as error:  # decoders may raise any exception
        return "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)


@torch.inference_mode()
def embed_images(module: RetrievalModule, images: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings (D,) of images (C, H, W), on the CPU; images of the same size are embedded together."""
    embeddings: dict[int, Tensor] = {}
    for shape in {image.shape for image in images}:
        positions = [position for position, image in enumerate(images) if image.shape == shape]
        batch = torch.stack([images[position] for position in positions]).to(module.device)
        for position, embedding in zip(positions, module.predict_step([batch], 0), strict=True):
            embeddings[position] = embedding.float().cpu()
    return [embeddings[position] for position in range(len(images))]
