"""Speed of a training step on a CPU by chunks, memory allocation and memory format."""

import argparse
import itertools
import resource
import statistics
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.multiprocessing
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_recall.benchmarks.measure import machine, peak_bytes, seconds
from lightning_recall.benchmarks.recompute import random_images, step
from lightning_recall.memory_allocation import keep_freed_memory
from lightning_recall.models import ImageEmbedder

CPU = torch.device("cpu")
ALLOCATIONS = {"glibc's default": None, "keep_freed_memory": keep_freed_memory}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class StepSettings(NamedTuple):
    """The network, the batch and the chunks of a step."""

    backbone: str
    image_size: int  # pixels
    batch_size: int
    memory_format: str  # a key of FORMATS
    chunk_size: int
    keep_chunks: int


class StepCost(NamedTuple):
    """Seconds, and page faults, of a step."""

    seconds: float
    page_faults: int


def main(args: list[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.cpu_step", description=__doc__)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="timm model name; the weights are random")
    parser.add_argument("--image-size", type=int, default=128, help="pixels")
    parser.add_argument("--batch-size", type=int, default=116, help="images in a step")
    parser.add_argument("--chunk-size", type=int, default=29, help="images in one pass of the network")
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds; the median is reported")
    options = parser.parse_args(args)
    chunks = -(-options.batch_size // options.chunk_size)
    steps = {
        "whole batch": (options.batch_size, 1),
        f"chunks of {options.chunk_size}": (options.chunk_size, 1),
        f"chunks of {options.chunk_size}, all kept": (options.chunk_size, chunks),
    }
    network = options.backbone, options.image_size, options.batch_size
    settings = {
        (memory_format, name): StepSettings(*network, memory_format, *chunking)
        for memory_format, (name, chunking) in itertools.product(FORMATS, steps.items())
    }
    console = Console()
    console.print(f"{machine(CPU)}; {options.backbone}, {options.batch_size} images of {options.image_size} pixels")
    console.print(compare(settings, options.repeats))


def compare(settings: dict[tuple[str, str], StepSettings], repeats: int) -> Table:
    """Times all steps with each allocation, alternately, and measures their memory.

    Args:
        settings: (memory format, name of the step) -> its settings. The first is the base of the ratios.
        repeats: number of rounds.
    """
    spawn = torch.multiprocessing.get_context("spawn")  # the setting of the allocator holds for a whole process
    processes = {name: ProcessPoolExecutor(1, spawn, set_up) for name, set_up in ALLOCATIONS.items()}
    try:
        runs = {
            (*names, allocation): partial(run_in, process, step_settings)
            for allocation, process in processes.items()
            for names, step_settings in settings.items()
        }
        for run in runs.values():
            run(measure_step)  # warm-up
        rounds = [{names: run(measure_step) for names, run in runs.items()} for _ in range(repeats)]
        table = Table("format", "step", "allocation", "images/s", "ratio", "page faults", "peak, MiB")
        base = None
        for names, run in runs.items():
            time = statistics.median(costs[names].seconds for costs in rounds)
            faults = statistics.median(costs[names].page_faults for costs in rounds)
            batch_size = settings[names[:2]].batch_size
            base = base or time
            cells = f"{batch_size / time:.1f}", f"{base / time:.2f}", f"{faults:,.0f}", f"{run(peak_mib):,.0f}"
            table.add_row(*names, *cells)
    finally:
        for process in processes.values():
            process.shutdown()
    return table


def run_in(process: Executor, settings: StepSettings, measure: Callable[[StepSettings], Any]) -> Any:
    """Runs a measurement in another process."""
    return process.submit(measure, settings).result()


def measure_step(settings: StepSettings) -> StepCost:
    """Time and page faults of one step."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    time = seconds(lambda: run_step(settings), CPU)
    return StepCost(time, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def peak_mib(settings: StepSettings) -> float:
    """Growth of the process's memory in two steps, in MiB; the second meets memory that the first freed."""

    def two_steps() -> None:
        run_step(settings)
        run_step(settings)

    return peak_bytes(two_steps, CPU) / 2**20


def run_step(settings: StepSettings) -> None:
    """Embeds a batch in chunks and computes the gradient of the loss."""
    model = build_model(settings.backbone, settings.memory_format)
    images = build_images(settings.image_size, settings.batch_size, settings.memory_format)
    step(model, images, settings.chunk_size, settings.keep_chunks)


@cache
def build_model(backbone: str, memory_format: str) -> nn.Module:
    """The embedder; the BatchNorm statistics of its backbone are frozen, as in fine-tuning."""
    last = memory_format == "channels_last"
    options: dict[str, Any] = {"pretrained": False, "norm": "batch", "freeze_batch_norm": True, "channels_last": last}
    return ImageEmbedder(backbone, embedding_dim=128, **options).train()


@cache
def build_images(size: int, count: int, memory_format: str) -> Tensor:
    """Images (count, 3, size, size) uint8."""
    return random_images(size, CPU, count).contiguous(memory_format=FORMATS[memory_format])


if __name__ == "__main__":
    main()
