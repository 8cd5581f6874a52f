"""Speed of the losses: forward plus backward, compared with the matrix products and the published code.

The table over dimensions and class sizes also shows nanoseconds per similarity and the cost of one pass over the
similarities (x.mul_(1) on an N x N matrix, which reads and writes main memory). At small D the products take hardly
longer than a few passes, so the ratio to the products is high for every loss; compare the nanoseconds there.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recall.benchmarks.measure import (
    example_batch,
    forward_backward,
    interleaved_times,
    machine,
    peak_bytes,
    seconds,
    three_products,
)
from lightning_recall.benchmarks.published import published_loss
from lightning_recall.losses import (
    CircleLoss,
    ContrastiveLoss,
    NormalizedSoftmaxLoss,
    RecallAtKLoss,
    SmoothAPLoss,
    SupAPLoss,
    SupRecallAtKLoss,
    UniLoss,
)
from lightning_recall.mixup import SimilarityMixup
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels, mix_embeddings

Loss = Callable[[Tensor, Tensor], Tensor]


def main(args: list[str] | None = None) -> None:
    """Prints two tables, one more with --dims or --class-sizes, and one more with --published."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.loss_speed", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000], help="images in a batch, 4 per class")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    parser.add_argument("--repeats", type=int, default=9, help="number of rounds; the median is reported")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dims", type=int, nargs="+", default=[], help="lengths of embeddings to compare")
    parser.add_argument("--class-sizes", type=int, nargs="+", default=[], help="images per class to compare")
    parser.add_argument("--published", metavar="DIR", help="a clone of RecallatK_surrogate to compare with")
    parser.add_argument("--published-sizes", type=int, nargs="+", default=[2000], help="images, without SiMix")
    parser.add_argument("--published-mixed", type=int, nargs="+", default=[800], help="images, to mix with SiMix")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    console = Console()
    console.print(f"{machine(device)}; D = {options.dim}, 4 images per class, fp32")
    console.print(compare_with_products(options.sizes, options.dim, options.repeats, device))
    console.print(all_losses(max(options.sizes), options.dim, options.repeats, device))
    shapes = [(dim, 4) for dim in options.dims] + [(options.dim, images) for images in options.class_sizes]
    if shapes:
        console.print(compare_shapes(max(options.sizes), shapes, options.repeats, device))
    if options.published:
        runs = [(size, False) for size in options.published_sizes] + [(size, True) for size in options.published_mixed]
        console.print(compare_with_published(options.published, runs, options.dim, device))


def compare_with_products(sizes: list[int], dim: int, repeats: int, device: torch.device) -> Table:
    """The loss and both SiMix variants, compared with three matrix products of the same size."""
    table = Table("images", "data", "embeddings", "3 products, s", "loss, s", "ratio", title="Forward plus backward")
    for size in sizes:
        random, clustered, tight = (example_batch(size, dim, data, device) for data in ("random", "clustered", "tight"))
        pairs = SimilarityMixup().draw(clustered[1])
        appended = SimilarityMixup()(*clustered)
        loss, simix_loss = RecallAtKLoss(), partial(RecallAtKLoss(), pairs=pairs)
        runs: list[tuple[str, Loss, tuple[Tensor, Tensor]]] = [
            ("random", loss, random),
            ("clustered", loss, clustered),
            ("tight", loss, tight),
            ("clustered + SiMix", simix_loss, clustered),
            ("clustered + SiMix, appended", loss, appended),
        ]
        for data, run_loss, batch in runs:
            all_embeddings = appended[0] if "SiMix" in data else batch[0]
            steps = partial(three_products, all_embeddings), partial(forward_backward, run_loss, *batch)
            products_time, loss_time = interleaved_times(list(steps), device, repeats)
            cells = f"{products_time:.3f}", f"{loss_time:.3f}", f"{loss_time / products_time:.2f}"
            table.add_row(f"{size:,}", data, f"{len(all_embeddings):,}", *cells)
    return table


def all_losses(size: int, dim: int, repeats: int, device: torch.device) -> Table:
    """Every loss compared with the three matrix products, and its extra memory, without embeddings and gradient."""
    columns = "loss", "clustered, s", "ratio to 3 products", "tight, s", "ratio to 3 products", "extra, MiB"
    table = Table(*columns, title=f"All losses, {size:,} images")
    losses: list[Loss] = [*similarity_losses(), NormalizedSoftmaxLoss(-(-size // 4), dim).to(device)]
    clustered, tight = (example_batch(size, dim, data, device) for data in ("clustered", "tight"))
    steps = [[partial(forward_backward, loss, *batch) for loss in losses] for batch in (clustered, tight)]
    products = partial(three_products, clustered[0])
    products_time, *times = interleaved_times([products, *steps[0], *steps[1]], device, repeats)
    for loss, step, time, tight_time in zip(losses, steps[0], times[: len(losses)], times[len(losses) :], strict=True):
        extra = (peak_bytes(step, device) - clustered[0].nbytes) / 2**20
        cells = [cell for t in (time, tight_time) for cell in (f"{t:.3f}", f"{t / products_time:.2f}")]
        table.add_row(type(loss).__name__, *cells, f"{extra:.0f}")
    return table


def similarity_losses() -> list[Loss]:
    """The losses that compute all similarities."""
    ranking: list[Loss] = [RecallAtKLoss(), SupRecallAtKLoss(), SmoothAPLoss(), SupAPLoss()]
    return [*ranking, UniLoss(), CircleLoss(), ContrastiveLoss()]


def compare_shapes(size: int, shapes: list[tuple[int, int]], repeats: int, device: torch.device) -> Table:
    """Ratio to the three products, and nanoseconds per similarity, for pairs of D and images per class; clustered."""
    losses = similarity_losses()
    names = [type(loss).__name__.removesuffix("Loss") for loss in losses]
    columns = "D", "images per class", "1 pass, ns", "3 products, ns"
    title = f"{size:,} images, clustered: ratio to 3 products (ns per similarity)"
    table = Table(*columns, *names, title=title)
    matrix = torch.ones(size, size, device=device)
    for dim, per_class in shapes:
        labels = torch.arange(size, device=device) // per_class
        noise = example_batch(size, dim, "random", device)[0]
        centres = F.normalize(torch.randn(size, dim, generator=torch.Generator().manual_seed(1)), dim=1).to(device)
        embeddings = F.normalize(centres[labels] + 1.5 * noise, dim=1)  # cosines of 0.3 within a class
        steps = [partial(forward_backward, loss, embeddings, labels) for loss in losses]
        fixed: list[Callable[[], object]] = [partial(matrix.mul_, 1.0), partial(three_products, embeddings)]
        times = [1e9 * time / size**2 for time in interleaved_times([*fixed, *steps], device, repeats)]
        cells = [f"{time / times[1]:.2f} ({time:.1f})" for time in times[2:]]
        table.add_row(str(dim), str(per_class), *(f"{time:.2f}" for time in times[:2]), *cells)
    return table


def compare_with_published(folder: str, runs: list[tuple[int, bool]], dim: int, device: torch.device) -> Table:
    """Time, memory, and difference in loss and gradient, on the same embeddings; ours has `count_query=True`."""
    columns = "embeddings", "published, s", "ours, s", "times faster", "published, MiB", "ours, MiB"
    differences = "loss difference", "gradient difference"
    table = Table(*columns, *differences, title="Compared with the published code (clustered)")
    for size, mixed in runs:
        embeddings, labels = example_batch(size, dim, "clustered", device)
        pairs = SimilarityMixup().draw(labels) if mixed else VirtualPairs(*(labels[:0] for _ in range(3)))
        all_labels = append_virtual_labels(labels, pairs)
        order = all_labels.argsort(stable=True)  # the published code infers classes from the position
        clone = published_loss(folder, len(all_labels), len(torch.unique(labels)), dim)
        published = partial(published_loss_with_virtual, clone, pairs, order)
        ours = partial(RecallAtKLoss(count_query=True), pairs=pairs) if mixed else RecallAtKLoss(count_query=True)
        cells = comparison_row(published, ours, embeddings, labels)
        table.add_row(f"{len(all_labels):,}{' SiMix' if mixed else ''}", *cells)
    return table


def published_loss_with_virtual(
    published: Loss, pairs: VirtualPairs, order: Tensor, embeddings: Tensor, labels: Tensor
) -> Tensor:
    """The published loss on N embeddings and M virtual ones, permuted by `order` (N + M,)."""
    return published(mix_embeddings(embeddings, pairs)[order], append_virtual_labels(labels, pairs)[order])


def comparison_row(published: Loss, ours: Loss, embeddings: Tensor, labels: Tensor) -> list[str]:
    """Seconds, ratio, memory and differences, as cells of a table row."""
    device = embeddings.device
    our_step, published_step = (partial(forward_backward, loss, embeddings, labels) for loss in (ours, published))
    our_time = interleaved_times([our_step], device, 5)[0]
    our_bytes = peak_bytes(our_step, device)
    results: list[tuple[float, Tensor]] = []
    times: list[float] = []  # timed only once, because it takes a minute
    peak = peak_bytes(lambda: times.append(seconds(lambda: results.append(published_step()), device)), device)
    (value, gradient), (published_value, published_gradient) = our_step(), results[0]
    differences = abs(value - published_value), float((gradient - published_gradient).abs().max())
    speeds = [f"{times[0]:.2f}", f"{our_time:.3f}", f"{times[0] / our_time:.0f}"]
    return [*speeds, *(f"{b / 2**20:.0f}" for b in (peak, our_bytes)), *(f"{d:.0e}" for d in differences)]


if __name__ == "__main__":
    main()
