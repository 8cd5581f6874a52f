"""Time and memory of the segmentation losses, forward plus backward, beside F.cross_entropy and BCE with logits."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recall.benchmarks.measure import forward_backward, interleaved_times, machine, peak_bytes
from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, StructuralSimilarityLoss

IGNORED = 255
CELL = 8  # side of the squares of one class, in pixels


@dataclass(frozen=True)
class Measured:
    """A loss, and the row of the table that it is compared with."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    reference: int
    ignored: bool = False
    half: bool = False


def main(args: list[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.segmentation_losses", description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="images in a batch")
    parser.add_argument("--classes", type=int, default=19, help="number of classes")
    parser.add_argument("--height", type=int, default=256, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument("--repeats", type=int, default=9, help="number of rounds; the median is reported")
    parser.add_argument("--device", default="cpu", help="cpu (memory: Linux only) or cuda")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    logits, target = scene(options.images, options.classes, options.height, options.width, device)
    console = Console()
    shape = " x ".join(map(str, logits.shape))
    console.print(machine(device))
    console.print(f"logits {shape}, {logits.numel() * 4 / 2**20:.0f} MiB; bf16: under autocast, from logits in bf16")
    console.print(compare(logits, target, options.repeats))


def scene(images: int, classes: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (B, C, H, W) that are right at most pixels, and a target (B, H, W) of squares."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, classes, (images, -(-height // CELL), -(-width // CELL)), generator=generator)
    target = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[:, :height, :width].contiguous()
    logits = torch.randn(images, classes, height, width, generator=generator)
    logits.scatter_add_(1, target.unsqueeze(1), torch.full((images, 1, height, width), 3.0))
    return logits.to(device), target.to(device)


def losses(target: Tensor, classes: int) -> list[Measured]:
    """The rows of the table. The truth of BCE is ready: its time and memory are not counted."""
    truth = F.one_hot(target, classes).movedim(-1, 1).float().contiguous()

    def binary(logits: Tensor, _: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.float(), truth)

    cross_entropy = partial(F.cross_entropy, ignore_index=IGNORED)
    recall, similarity = RecallCrossEntropyLoss, StructuralSimilarityLoss
    return [
        Measured("F.cross_entropy", cross_entropy, 0, ignored=True),
        Measured("RecallCrossEntropyLoss", recall(classes, IGNORED), 0, ignored=True),
        Measured("  momentum", recall(classes, IGNORED, 0.5), 0, ignored=True),
        Measured("F.cross_entropy, bf16", cross_entropy, 3, ignored=True, half=True),
        Measured("RecallCrossEntropyLoss, bf16", recall(classes, IGNORED), 3, ignored=True, half=True),
        Measured("BCE with logits", binary, 5),
        Measured("StructuralSimilarityLoss", similarity(classes), 5),
        Measured("  5 percent ignored", similarity(classes, IGNORED), 5, ignored=True),
        Measured("  softmax", similarity(classes, activation="softmax"), 5),
        Measured("BCE with logits, bf16", binary, 9, half=True),
        Measured("StructuralSimilarityLoss, bf16", similarity(classes), 9, half=True),
    ]


def compare(logits: Tensor, target: Tensor, repeats: int) -> Table:
    """Times and peak memory of all losses, measured alternately."""
    runs = losses(target, logits.shape[1])
    ignored = target.clone()
    ignored[:, : target.shape[1] // 20] = IGNORED  # the upper edge
    steps: list[Callable[[], None]] = [partial(step, run, logits, ignored if run.ignored else target) for run in runs]
    times = interleaved_times(steps, logits.device, repeats)
    peaks = [peak_bytes(one, logits.device) for one in steps]
    table = Table("loss", "seconds", "ratio", "extra peak, MiB", "ratio", title="Forward plus backward")
    for run, time, peak in zip(runs, times, peaks, strict=True):
        ratios = [f"{time / times[run.reference]:.2f}", f"{peak / max(peaks[run.reference], 1):.2f}"]
        table.add_row(run.name, f"{time:.3f}", ratios[0], f"{peak / 2**20:.0f}", ratios[1])
    return table


def step(run: Measured, logits: Tensor, target: Tensor) -> None:
    """Forward and backward of a loss; with `half` from logits in bf16 under autocast, as a network gives them."""
    inputs = logits.bfloat16() if run.half else logits
    with torch.autocast(logits.device.type, torch.bfloat16, enabled=run.half):
        forward_backward(run.loss, inputs, target)


if __name__ == "__main__":
    main()
