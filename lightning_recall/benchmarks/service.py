"""Images per second of a running server that embeds images, such as that of docs/how_to/service.md."""

import argparse
import http.client
import statistics
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
from rich.console import Console
from rich.table import Table

from lightning_recall.benchmarks.measure import machine

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
BOUNDARY = "lightning-recall-image"
TIMEOUT = 60  # seconds for one answer


class Load(NamedTuple):
    """What some clients measured: how many there were, the time they took, and the seconds of each request."""

    concurrency: int
    wall: float
    requests: list[float]


def main(args: list[str] | None = None) -> None:
    """Prints a table with a row for each number of clients."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.service", description=__doc__)
    parser.add_argument("folder", help="folder with image files, posted in turn, one in each request")
    parser.add_argument("--url", default="http://127.0.0.1:8000/embed")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8], help="clients that post at a time")
    parser.add_argument("--seconds", type=float, default=10, help="duration for each number of clients")
    options = parser.parse_args(args)
    paths = sorted(path for path in Path(options.folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{options.folder} holds no image files ({', '.join(sorted(SUFFIXES))}).")
    bodies = [multipart(path) for path in paths]
    console = Console()
    console.print(f"{machine(torch.device('cpu'))}; {len(paths)} images, server and clients on the same machine")
    post_for(options.url, bodies, 1, 1.0)  # warm-up
    loads = [post_for(options.url, bodies, number, options.seconds) for number in options.concurrency]
    console.print(load_table(loads))


def multipart(path: Path) -> bytes:
    """Body of a request with one file, named "files" as the server's argument."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    return head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def post_for(url: str, bodies: list[bytes], concurrency: int, seconds: float) -> Load:
    """Posts from so many threads for this long, each with a connection of its own.

    Raises:
        RuntimeError: if the server answers with an error.
    """
    times: list[float] = []
    errors: list[Exception] = []
    start = time.perf_counter()

    def client(first: int) -> None:
        try:
            times.extend(request_times(url, bodies[first:] + bodies[:first], start + seconds))
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            errors.append(error)

    step = max(1, len(bodies) // concurrency)
    clients = [threading.Thread(target=client, args=(i * step % len(bodies),)) for i in range(concurrency)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    if errors:
        raise RuntimeError(f"The server at {url} failed: {errors[0]}") from errors[0]
    return Load(concurrency, time.perf_counter() - start, times)


def request_times(url: str, bodies: list[bytes], deadline: float) -> list[float]:
    """Seconds of each request, posted one after the other until the deadline of `time.perf_counter`."""
    times: list[float] = []
    parts = urlsplit(url)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)) as connection:
        while (start := time.perf_counter()) < deadline:
            connection.request("POST", parts.path, bodies[len(times) % len(bodies)], headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise RuntimeError(f"{answer.status} {content[:200].decode(errors='replace')}")
            times.append(time.perf_counter() - start)
    return times


def load_table(loads: list[Load]) -> Table:
    """One line for each number of clients."""
    table = Table("clients", "images/s", "median ms", "95 % below ms")
    for concurrency, wall, times in loads:
        ordered = sorted(times)
        tail = ordered[int(0.95 * (len(ordered) - 1))]
        median = statistics.median(ordered)
        table.add_row(str(concurrency), f"{len(times) / wall:.1f}", f"{1000 * median:.0f}", f"{1000 * tail:.0f}")
    return table


if __name__ == "__main__":
    main()
