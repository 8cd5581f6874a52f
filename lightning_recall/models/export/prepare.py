"""What all exports share: the module that is exported, its example images, and files that appear only when complete."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.checks import check_integer
from lightning_recall.models.lora import LoRAEmbedder

COARSE = 8  # pixels of the random image that is enlarged to a smooth one


class HalfPrecision(nn.Module):
    """An embedder with weights and activations in float16, whose embeddings are float32 and have unit norm.

    Args:
        embedder: images -> embeddings, in the dtype of its weights; it is changed in place.
    """

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder.half()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) float32 of images (B, C, H, W) uint8."""
        return F.normalize(self.embedder(images).float(), dim=1)


def prepared(embedder: nn.Module, half: bool = False) -> nn.Module:
    """A copy of the embedder on the CPU in evaluation mode, with merged LoRA matrices; in float16 if `half`."""
    module = copy.deepcopy(embedder.merged() if isinstance(embedder, LoRAEmbedder) else embedder).cpu().float().eval()
    return HalfPrecision(module) if half else module


def example_images(image_size: int | tuple[int, int], channels: int) -> Tensor:
    """Seven images (7, C, H, W) uint8, always the same: four smooth ones as photographs are, and three of noise.

    Raises:
        ValueError: for a size or number of channels below 1.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for name, value in (("image_size", height), ("image_size", width), ("channels", channels)):
        check_integer(name, value, 1)
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(4, channels, COARSE, COARSE, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
    noise = torch.randint(0, 256, (3, channels, height, width), dtype=torch.uint8, generator=generator)
    return torch.cat([smooth, noise])


def check_torch() -> None:
    """Raises RuntimeError with torch below 2.9, whose exporter does not support a dynamic batch size."""
    if torch.__version__ < "2.9":
        raise RuntimeError(f"Exporting needs torch 2.9 or later, this is {torch.__version__}: upgrade torch.")


def new_path(path: str | Path, suffix: str) -> Path:
    """The path of a file to write.

    Raises:
        ValueError: if it has another suffix, or exists; OpenVINO's weights file (.bin) must not exist either.
        FileNotFoundError: if its folder does not exist.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"The file's name must end with {suffix}, got {path.name}.")
    for file in (path, *([path.with_suffix(".bin")] if suffix == ".xml" else [])):
        if file.exists() or file.is_symlink():
            raise ValueError(f"{file} exists, and is not overwritten: choose another name, or remove it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: create it first.")
    return path


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yields a path of the same name in a temporary folder; its files move to `path`'s folder if no error occurs."""
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        yield Path(folder, path.name)
        new_path(path, path.suffix)  # another process may have written it since
        for file in Path(folder).iterdir():
            file.rename(path.with_name(file.name))
