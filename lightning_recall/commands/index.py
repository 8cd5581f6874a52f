"""`lightning-recall index`: builds a search index of embeddings, adds to one, or copies embeddings to Qdrant."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_recall.embedding_sets import EmbeddingSet
    from lightning_recall.indexes import SearchIndex

TRUST = "classes or packages of your own that the model is made of, such as my_package.MyEmbedder"
IMAGES_PER_SAVE = 10_000
"""images that are embedded before they are added to the index: an interruption loses no more"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "source",
        metavar="EMBEDDINGS",
        help="folder that predict has written, or a .npz or .safetensors file with `embeddings`; with --add, also a "
        "folder of images",
    )
    parser.add_argument("--to", metavar="INDEX", help="folder of the index, such as shop.faiss")
    parser.add_argument(
        "--add",
        action="store_true",
        help="add to the index --to what it does not have yet; repeat it after new files have arrived",
    )
    parser.add_argument(
        "--kind",
        help="exact; hnsw, ivf or pq, which are faster or smaller and miss some neighbours; with faiss also any text "
        "for faiss.index_factory; auto: exact below 100,000 items, hnsw from there (default: auto)",
    )
    parser.add_argument("--engine", choices=("faiss", "usearch"), help="usearch has exact and hnsw (default: faiss)")
    parser.add_argument(
        "--model",
        metavar="FOLDER_OR_CKPT",
        help="model of the embeddings: a folder written by save_pretrained, or a checkpoint (default: the folder "
        "`model` beside the embeddings)",
    )
    parser.add_argument("--trust", metavar="CLASS_OR_PACKAGE", nargs="+", default=(), help=TRUST)
    parser.add_argument(
        "--to-qdrant", metavar="URL_OR_FOLDER", help="copy the embeddings to Qdrant; QDRANT_API_KEY is its key"
    )
    parser.add_argument("--collection", help="name of the new collection in Qdrant")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        ValueError: for options that do not go together, and for what `build_index`, `SearchIndex.add` and
            `export_to_qdrant` reject.
    """
    check_options(arguments)
    if arguments.to_qdrant is not None:
        copy_to_qdrant(arguments)
    elif arguments.add:
        add(Path(arguments.source).expanduser(), arguments.to, arguments.trust)
    else:
        build(arguments)


def check_options(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    if (arguments.to is None) == (arguments.to_qdrant is None):
        raise ValueError("index needs a target: either --to INDEX, or --to-qdrant URL_OR_FOLDER --collection NAME.")
    if (arguments.collection is None) != (arguments.to_qdrant is None):
        raise ValueError("--to-qdrant and --collection belong together: pass both, or --to INDEX.")
    given = [f"--{name}" for name in ("kind", "engine", "model") if getattr(arguments, name) is not None]
    if given and (arguments.add or arguments.to_qdrant is not None):
        raise ValueError(f"{' and '.join(given)} can be chosen only for a new index: leave out the option.")
    if arguments.add and arguments.to_qdrant is not None:
        raise ValueError("--add adds to an index, not to Qdrant: leave out one of --add and --to-qdrant.")


def build(arguments: argparse.Namespace) -> None:
    """Builds an index and prints its recall."""
    from lightning_recall.callbacks.output import print_line
    from lightning_recall.embedding_sets import read_embedding_set
    from lightning_recall.indexes import build_index
    from lightning_recall.indexes.folder import check_new

    check_new(Path(arguments.to).expanduser())
    embedding_set = read_embedding_set(arguments.source)
    with tempfile.TemporaryDirectory() as temporary:
        embedding_set, threshold = with_model(embedding_set, arguments, Path(temporary, "model"))
        given = {name: getattr(arguments, name) for name in ("kind", "engine") if getattr(arguments, name) is not None}
        index = build_index(embedding_set, arguments.to, **given, similarity_threshold=threshold)
    print_line(describe(index))
    if index.model_folder is None:
        print_line("It has no model: search it with embeddings, or build it with --model to search it with images.")


def with_model(
    embedding_set: "EmbeddingSet", arguments: argparse.Namespace, folder: Path
) -> tuple["EmbeddingSet", dict[str, Any] | None]:
    """The embeddings with the folder and the weights of their model, and the threshold of the model.

    Args:
        embedding_set: the embeddings.
        arguments: of the command: model, trust.
        folder: where the model of a checkpoint is saved.

    Raises:
        ValueError: if the embeddings are of another model.
    """
    from lightning_recall.callbacks.embedding_state import fingerprint
    from lightning_recall.commands.saved_model import load_model
    from lightning_recall.indexes.folder import check_same_model

    path = embedding_set.model_folder if arguments.model is None else Path(arguments.model).expanduser()
    if path is None:
        return embedding_set, None
    module = load_model(path, arguments.trust)
    weights = fingerprint(module.state_dict())
    check_same_model(embedding_set.model.get("weights", ""), weights, path)
    if not path.is_dir():
        module.save_pretrained(folder)
        path = folder
    threshold = getattr(module, "similarity_threshold", None)
    known = {**embedding_set.model, "weights": weights}
    return embedding_set._replace(model=known, model_folder=path), threshold


def describe(index: "SearchIndex") -> str:
    """What was built, and how many neighbours it finds."""
    from lightning_recall.indexes import IndexRecall

    about, size = index.manifest, (index.path / index.manifest.index_name).stat().st_size
    text = (
        f"Index of {len(index):,} items, {about.kind} ({about.engine}), {size / len(index):,.0f} bytes an item: "
        f"{index.path}"
    )
    if about.recall is not None:
        recall = IndexRecall(**about.recall)
        text += (
            f"\nIt finds {100 * recall.recall:.1f} % of the {recall.k} nearest of {recall.num_queries:,} sampled items."
        )
    return text


def add(source: Path, target: str, trust: Sequence[str]) -> None:
    """Adds embeddings or images to an index."""
    from lightning_recall.callbacks.output import print_line
    from lightning_recall.embedding_sets import read_embedding_set
    from lightning_recall.indexes import open_index

    index = open_index(target)
    if holds_embeddings(source):
        embedding_set = read_embedding_set(source)
        num_added, num_given = index.add(embedding_set), len(embedding_set.ids)
    else:
        num_added, num_given = add_images(index, source, trust)
    known = f" ({num_given - num_added:,} were in it)" if num_added < num_given else ""
    print_line(f"Added {num_added:,} of {num_given:,} items{known}; the index now has {len(index):,}: {index.path}")


def holds_embeddings(source: Path) -> bool:
    """Whether a path is a file or folder of embeddings, and not of images."""
    if source.is_dir():
        return any(True for pattern in ("shard-*", "*/shard-*") for _ in source.glob(pattern))
    return source.suffix in (".npz", ".safetensors")


def add_images(index: "SearchIndex", source: Path, trust: Sequence[str]) -> tuple[int, int]:
    """Embeds the image files that an index does not have, and adds them; warns of files that cannot be read.

    Returns:
        The number of added items, and of files that could be read or were in the index.

    Raises:
        ValueError: if there are no image files, or none of the new ones can be read.
    """
    from lightning_recall.callbacks.output import print_line
    from lightning_recall.commands.saved_model import embed_files, model_of
    from lightning_recall.data.folders import images_below
    from lightning_recall.data.messages import pluralize

    folder = os.path.realpath(source)
    files = images_below(Path(folder)) if source.is_dir() else []
    if not files:
        state = "holds no image files, such as .jpg or .png" if source.is_dir() else "is not a folder"
        raise ValueError(f"{source} {state}: pass a folder of images, or embeddings.")
    known = {index.file(row) for row in range(len(index))}
    new = [file for file in files if file not in known]
    num_gone = sum(file.startswith(os.path.join(folder, "")) for file in known - set(files))
    if num_gone:
        print_line(f"{pluralize(num_gone, 'item')} of the index had files in {source} that are gone: they stay in it.")
    if not new:
        return 0, len(files)
    module = model_of(index, trust)
    num_added, unreadable = 0, dict[str, str]()
    for start in range(0, len(new), IMAGES_PER_SAVE):
        embedded = embed_files(module, new[start : start + IMAGES_PER_SAVE])
        unreadable |= embedded.unreadable
        if embedded.files:
            num_added += index.add(as_embedding_set(index, folder, embedded.embeddings, embedded.files))
    for file, reason in unreadable.items():
        print_line(f"Cannot read {file}: {reason}. It is not in the index.")
    return num_added, len(files) - len(unreadable)


def as_embedding_set(index: "SearchIndex", folder: str, embeddings: Any, files: list[str]) -> "EmbeddingSet":
    """Embedded images as a set. If the index knows classes, the class of an image is the name of its folder."""
    import torch

    from lightning_recall.embedding_sets import EmbeddingSet

    has_classes = any(item.class_name for item in index.items)
    parents = [os.path.dirname(file) for file in files]
    classes = [os.path.basename(parent) if has_classes and parent != folder else "" for parent in parents]
    ids = torch.arange(len(files))
    weights = {"weights": index.manifest.weights}
    return EmbeddingSet(
        Path(folder), embeddings, ids, paths=files, classes=classes, model=weights, image_folder=Path(folder)
    )


def copy_to_qdrant(arguments: argparse.Namespace) -> None:
    """Copies embeddings to a server or a local folder of Qdrant."""
    from lightning_recall.callbacks.output import print_line
    from lightning_recall.embedding_sets import read_embedding_set
    from lightning_recall.indexes.qdrant import connect, export_to_qdrant

    embedding_set = read_embedding_set(arguments.source)
    client = connect(arguments.to_qdrant)
    try:
        export_to_qdrant(embedding_set, client, arguments.collection)
    finally:
        client.close()
    print_line(f"Collection {arguments.collection} of {len(embedding_set.ids):,} items: {arguments.to_qdrant}")
