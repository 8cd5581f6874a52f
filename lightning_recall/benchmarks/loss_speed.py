"""Speed of the losses: forward plus backward, beside the matrix products and the published code."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recall.benchmarks.measure import (
    example_batch,
    forward_backward,
    interleaved,
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
from lightning_recall.virtual_pairs import VirtualPairs, mix_embeddings

Loss = Callable[[Tensor, Tensor], Tensor]


def main(args: list[str] | None = None) -> None:
    """Prints two tables, or three with --published."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.loss_speed", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000], help="images in a batch, 4 a class")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    parser.add_argument("--repeats", type=int, default=9, help="rounds, of which the median is shown")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--published", metavar="DIR", help="a clone of RecallatK_surrogate to compare with")
    parser.add_argument("--published-sizes", type=int, nargs="+", default=[2000], help="images, without SiMix")
    parser.add_argument("--published-mixed", type=int, nargs="+", default=[800], help="images, before SiMix")
    given = parser.parse_args(args)
    device = torch.device(given.device)
    console = Console()
    console.print(f"{machine(device)}; D = {given.dim}, 4 images a class, fp32")
    console.print(beside_products(given.sizes, given.dim, given.repeats, device))
    console.print(all_losses(max(given.sizes), given.dim, given.repeats, device))
    if given.published:
        runs = [(size, False) for size in given.published_sizes] + [(size, True) for size in given.published_mixed]
        console.print(beside_published(given.published, runs, given.dim, device))


def beside_products(sizes: list[int], dim: int, repeats: int, device: torch.device) -> Table:
    """The loss, and the loss with SiMix in both forms, beside the three matrix products over the same rows."""
    table = Table("images", "data", "rows", "3 products, s", "loss, s", "ratio", title="Forward plus backward")
    for size in sizes:
        random, clustered, tight = (example_batch(size, dim, data, device) for data in ("random", "clustered", "tight"))
        pairs = SimilarityMixup().draw(clustered[1])
        appended = SimilarityMixup()(*clustered)
        plain, mixed = RecallAtKLoss(), partial(RecallAtKLoss(), pairs=pairs)
        runs: list[tuple[str, Loss, tuple[Tensor, Tensor]]] = [
            ("random", plain, random),
            ("clustered", plain, clustered),
            ("tight", plain, tight),
            ("clustered + SiMix", mixed, clustered),
            ("clustered + SiMix, appended", plain, appended),
        ]
        for data, loss, batch in runs:
            searched = appended[0] if "SiMix" in data else batch[0]
            steps = partial(three_products, searched), partial(forward_backward, loss, *batch)
            least, own = interleaved(list(steps), device, repeats)
            table.add_row(f"{size:,}", data, f"{len(searched):,}", f"{least:.3f}", f"{own:.3f}", f"{own / least:.2f}")
    return table


def all_losses(size: int, dim: int, repeats: int, device: torch.device) -> Table:
    """Every loss beside the three matrix products, and the memory that it takes beyond embeddings and gradient."""
    title = f"All losses, {size:,} images, clustered"
    table = Table("loss", "s", "over 3 products", "extra, MiB", title=title)
    embeddings, labels = example_batch(size, dim, "clustered", device)
    losses: list[Loss] = [RecallAtKLoss(), SupRecallAtKLoss(), SmoothAPLoss(), SupAPLoss(), UniLoss(), CircleLoss()]
    losses += [ContrastiveLoss(), NormalizedSoftmaxLoss(-(-size // 4), dim).to(device)]
    steps = [partial(forward_backward, loss, embeddings, labels) for loss in losses]
    least, *times = interleaved([partial(three_products, embeddings), *steps], device, repeats)
    for loss, step, time in zip(losses, steps, times, strict=True):
        extra = (peak_bytes(step, device) - embeddings.nbytes) / 2**20
        table.add_row(type(loss).__name__, f"{time:.3f}", f"{time / least:.2f}", f"{extra:.0f}")
    return table


def beside_published(folder: str, runs: list[tuple[int, bool]], dim: int, device: torch.device) -> Table:
    """Time, memory and numbers of the published code and of ours with `count_query=True`, on the same embeddings."""
    columns = "rows", "published, s", "ours, s", "times faster", "published, MiB", "ours, MiB", "loss off by"
    table = Table(*columns, "gradient off by", title="Beside the published code (clustered)")
    for size, mixed in runs:
        embeddings, labels = example_batch(size, dim, "clustered", device)
        pairs = SimilarityMixup().draw(labels) if mixed else VirtualPairs(*(labels[:0] for _ in range(3)))
        searched = torch.cat([labels, labels[pairs.first]])
        order = searched.argsort(stable=True)  # the published code goes by position
        published = published_loss(folder, len(searched), len(torch.unique(labels)), dim)
        theirs = partial(appended_loss, published, pairs, order)
        ours = partial(RecallAtKLoss(count_query=True), pairs=pairs) if mixed else RecallAtKLoss(count_query=True)
        table.add_row(f"{len(searched):,}{' SiMix' if mixed else ''}", *versus(theirs, ours, embeddings, labels))
    return table


def appended_loss(published: Loss, pairs: VirtualPairs, order: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The published loss of embeddings (N, D), with those of M virtual items appended, in the order (N + M,)."""
    return published(mix_embeddings(embeddings, pairs)[order], torch.cat([labels, labels[pairs.first]])[order])


def versus(theirs: Loss, ours: Loss, embeddings: Tensor, labels: Tensor) -> list[str]:
    """One row of the table: seconds, ratio, memory, differences."""
    device = embeddings.device
    own_step, their_step = (partial(forward_backward, loss, embeddings, labels) for loss in (ours, theirs))
    own = interleaved([own_step], device, 5)[0]
    own_bytes = peak_bytes(own_step, device)
    results: list[tuple[float, Tensor]] = []
    times: list[float] = []  # once is enough: it takes a minute
    their_bytes = peak_bytes(lambda: times.append(seconds(lambda: results.append(their_step()), device)), device)
    (value, gradient), (their_value, their_gradient), their = own_step(), results[0], times[0]
    differences = abs(value - their_value), float((gradient - their_gradient).abs().max())
    numbers = [f"{their:.2f}", f"{own:.3f}", f"{their / own:.0f}"]
    return [*numbers, *(f"{b / 2**20:.0f}" for b in (their_bytes, own_bytes)), *(f"{d:.0e}" for d in differences)]


if __name__ == "__main__":
    main()
