"""The comparison as one HTML page, which runs no script and loads nothing."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lightning_recall.comparison.compare import ClassDifference, Comparison, class_names
from lightning_recall.comparison.pairing import item_name
from lightning_recall.comparison.thumbnails import thumbnail
from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.metrics import Interval
from lightning_recall.metrics.scores import score_title

NUM_CLASSES = 10  # winners, and losers
NUM_QUERIES = 40  # gained, and lost


def page(comparison: Comparison, images: Path | None = None) -> str:
    """The page as text.

    Args:
        comparison: result of `compare`.
        images: folder of the image files; None: that of the embeddings, if known.
    """
    images = images or comparison.first.image_folder or comparison.second.image_folder
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files(__package__) / "compare.html").read_text(encoding="utf-8"))
    losers, winners = extremes(comparison)
    return template.render(
        models=[model_text(each) for each in (comparison.first, comparison.second)],
        num_images=len(comparison.first.ids),
        num_queries=len(comparison.results[0].queries),
        num_classes=len(comparison.classes),
        is_same_model=comparison.is_same_model,
        scores=[score_row(name, *each, each.verdict) for name, each in comparison.scores.items()],
        main_score=score_title(comparison.main_score),
        classes=[("B is better", winners), ("A is better", losers)],
        class_row=lambda each: class_row(each, comparison.main_score),
        changes=comparison.changes,
        queries=[
            (title, changed_queries(comparison, gained, images))
            for title, gained in (("Right only in A", False), ("Right only in B", True))
        ],
    )


def model_text(embeddings: EmbeddingSet) -> str:
    """Path of a set, and what is known of its model.

    >>> import torch
    >>> known = {"module": "package.RetrievalModule", "weights": "0123456789abcdef"}
    >>> model_text(EmbeddingSet(Path("run/embeddings"), torch.ones(1, 2), torch.arange(1), model=known))
    'run/embeddings (RetrievalModule, weights 0123456789ab)'
    """
    weights = embeddings.model.get("weights", "")[:12]
    known = ", ".join(
        filter(None, [embeddings.model.get("module", "").rpartition(".")[2], weights and f"weights {weights}"])
    )
    return f"{embeddings.path}" + (f" ({known})" if known else "")


def score_row(name: str, first: Interval, second: Interval, difference: Interval, verdict: str) -> dict[str, str]:
    """A score as text, in percent: of both models, their difference, and what it says."""
    return {
        "name": score_title(name),
        "first": interval_text(first),
        "second": interval_text(second),
        "difference": interval_text(difference, sign="+"),
        "better": f"{100 * difference.above_zero:.1f} %" if not difference.reason else "",
        "verdict": verdict,
    }


def interval_text(interval: Interval, sign: str = "") -> str:
    """A mean in percent with its interval.

    Args:
        interval: the interval.
        sign: "+": positive numbers get a plus sign.

    >>> interval_text(Interval(0.0123, 0.0051, 0.0196, 0.99, 30), "+")
    '+1.2 [+0.5, +2.0]'
    """
    mean, lower, upper = (format(100 * value, f"{sign}.1f") for value in interval[:3])
    return mean if interval.reason else f"{mean} [{lower}, {upper}]"


def extremes(comparison: Comparison) -> tuple[list[ClassDifference], list[ClassDifference]]:
    """The classes with the largest differences in favour of A and of B, the largest first."""
    score, classes = comparison.main_score, comparison.classes
    losers = [each for each in classes[:NUM_CLASSES] if each.difference(score) < 0]
    winners = [each for each in classes[: -NUM_CLASSES - 1 : -1] if each.difference(score) > 0]
    return losers, winners


def class_row(each: ClassDifference, score: str) -> list[str]:
    """Name, queries, score in A and B, difference, queries right only in A and only in B, as text."""
    first, second = each.first[score], each.second[score]
    scores = f"{100 * first:.1f}", f"{100 * second:.1f}", f"{100 * (second - first):+.1f}"
    return [each.name or f"class {each.label}", f"{each.num_queries:,}", *scores, f"{each.lost:,}", f"{each.gained:,}"]


def changed_queries(comparison: Comparison, gained: bool, images: Path | None) -> list[list[dict[str, Any]]]:
    """Some queries right only in one model: the query, and what A and B retrieve first, each as a picture."""
    changes = comparison.changes
    rows = (changes.gained == gained).nonzero().squeeze(1)[:NUM_QUERIES].tolist()
    names = class_names(comparison.first) or class_names(comparison.second)

    def picture(item: int, kind: str, caption: str) -> dict[str, str]:
        assert comparison.first.labels is not None  # `compare` checks it
        label, path = int(comparison.first.labels[item]), item_name(comparison.first, item)
        image = thumbnail(images, path) if images is not None and comparison.first.paths is not None else ""
        name = names.get(label, f"class {label}")
        return {"kind": kind, "caption": caption, "class": name, "file": path, "image": image}

    pictures = []
    for row in rows:
        query, right, wrong, rank = (
            int(part[row]) for part in (changes.queries, changes.right, changes.wrong, changes.ranks)
        )
        models = ("B", "A") if gained else ("A", "B")
        shown = [
            picture(item, kind, f"{model}: {changes.similarities[row, column]:.2f}")
            for item, kind, model, column in ((right, "relevant", models[0], 0), (wrong, "irrelevant", models[1], 1))
        ]
        caption = f"query; in {models[1]} first relevant at rank {rank:,}"
        pictures.append([picture(query, "query", caption), *sorted(shown, key=lambda each: each["caption"])])
    return pictures
