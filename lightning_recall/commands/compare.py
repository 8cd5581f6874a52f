"""Prints and writes the comparison of two models' embeddings of the same images."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_recall.comparison import Comparison
    from lightning_recall.embedding_sets import EmbeddingSet

NUM_QUERIES = 5  # changed queries printed, of each kind


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "first",
        metavar="A",
        help="embeddings of model A: a folder of predict, or a .npz or .safetensors file",
    )
    parser.add_argument("second", metavar="B", help="embeddings of model B")
    parser.add_argument(
        "--scores", nargs="+", default=["recall", "map@r"], help="scores; classes are sorted by the first"
    )
    parser.add_argument("--ks", nargs="+", type=int, default=[1, 2, 4, 8], help="cut-offs of scores such as recall")
    parser.add_argument("--to", metavar="FOLDER", help="folder for compare.html, classes.csv and queries.csv")
    parser.add_argument("--images", metavar="FOLDER", help="folder of the image files, if predict read another one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")


def run(arguments: Namespace) -> None:
    """Runs the command."""
    from rich import get_console

    from lightning_recall.comparison import compare, write_comparison
    from lightning_recall.comparison.output import new_paths
    from lightning_recall.embedding_sets import read_embedding_set

    if arguments.to is not None:
        new_paths(arguments.to)  # raises an error before the search, not after it
    sets = read_embedding_set(arguments.first), read_embedding_set(arguments.second)
    comparison = compare(*sets, arguments.scores, arguments.ks, arguments.seed, progress=True)
    console = get_console()
    for text in heading(comparison):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for table in (score_table(comparison), count_table(comparison), *class_tables(comparison)):
        console.print(table)
    for line in changed_lines(comparison):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if arguments.to is not None:
        for path in write_comparison(comparison, arguments.to, arguments.images):
            console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


def heading(comparison: "Comparison") -> list[str]:
    """What is compared, in lines."""
    from lightning_recall.comparison.page import model_text

    counts = len(comparison.first.ids), len(comparison.results[0].queries), len(comparison.classes)
    lines = [
        f"A: {printable(model_text(comparison.first))}",
        f"B: {printable(model_text(comparison.second))}",
        "{:,} images, {:,} queries, {:,} classes of queries".format(*counts),
    ]
    return lines + ["A and B have the same weights: they are embeddings of one model."] * comparison.is_same_model


def printable(text: str) -> str:
    r"""A text without the characters that would control the terminal, such as escape sequences.

    >>> printable("bird\x1b[31m.jpg")
    'bird�[31m.jpg'
    """
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def score_table(comparison: "Comparison") -> "Table":
    """A row for each score."""
    from rich.table import Table

    from lightning_recall.comparison.page import score_row

    caption = (
        "In brackets: 95 % intervals, bootstrap over the classes of the queries, with the gallery held fixed. One "
        "model is better if the interval of the difference excludes 0."
    )
    rows = [score_row(name, *each, each.verdict) for name, each in comparison.scores.items()]
    has_intervals = any(row["better"] for row in rows)
    table = Table(title="Scores, in %", caption=caption if has_intervals else None)
    table.add_column("")
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right")
    if has_intervals:
        table.add_column("resamples with B better", justify="right", max_width=9)
    table.add_column("")
    for row in rows:
        table.add_row(*(text for key, text in row.items() if has_intervals or key != "better"))
    return table


def count_table(comparison: "Comparison") -> "Table":
    """Numbers of queries whose nearest image is right."""
    from rich.table import Table

    changes = comparison.changes
    title = "Queries whose nearest image is right"
    table = Table(title=title, min_width=len(title))
    table.add_column("")
    table.add_column("B right", justify="right")
    table.add_column("B wrong", justify="right")
    table.add_row("A right", f"{changes.both_right:,}", f"{changes.num_lost:,}")
    table.add_row("A wrong", f"{changes.num_gained:,}", f"{changes.both_wrong:,}")
    return table


def class_tables(comparison: "Comparison") -> "list[Table]":
    """The classes that differ most, in favour of B and of A; no table if there are none."""
    from rich.table import Table
    from rich.text import Text

    from lightning_recall.comparison.page import class_row, extremes
    from lightning_recall.metrics.scores import score_title

    losers, winners = extremes(comparison)
    tables = []
    for model, classes in (("B", winners), ("A", losers)):
        title = f"Classes in which {model} is better, by {score_title(comparison.main_score)} in %"
        table = Table(title=title)
        table.add_column("class", overflow="fold")
        for name in ("queries", "A", "B", "B - A", "right only in A", "right only in B"):
            table.add_column(name, justify="right", max_width=len("right only"))  # leaves room for the class
        for each in classes:
            name, *numbers = class_row(each, comparison.main_score)
            table.add_row(Text(printable(name)), *numbers)
        tables += [table] * bool(classes)
    return tables


def changed_lines(comparison: "Comparison") -> list[str]:
    """Some queries that are right only in one model, with what the other retrieves first."""
    changes, lines = comparison.changes, []
    for model, is_gained, total in (("A", False, changes.num_lost), ("B", True, changes.num_gained)):
        rows = (changes.gained == is_gained).nonzero().squeeze(1)[:NUM_QUERIES].tolist()
        lines += [f"{total:,} queries right only in {model}" + (", the worst first:" if rows else "")]
        for row in rows:
            query, wrong = (item_text(comparison.first, int(items[row])) for items in (changes.queries, changes.wrong))
            lines.append(
                f"  {query} -> {wrong} in {'A' if is_gained else 'B'}, right at rank {int(changes.ranks[row]):,}"
            )
    return lines


def item_text(embeddings: "EmbeddingSet", item: int) -> str:
    """Path of an item, and its class."""
    from lightning_recall.comparison.pairing import item_name

    assert embeddings.labels is not None  # `compare` checks it
    name = embeddings.classes[item] if embeddings.classes is not None else f"class {int(embeddings.labels[item])}"
    return printable(f"{item_name(embeddings, item)} ({name})")
