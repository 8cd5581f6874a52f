"""A searchable index in a folder, with file names, model and threshold."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.indexes.items import Item, image_file, items_of, new_items, read_items, write_items
from lightning_recall.indexes.manifest import Manifest, read_manifest, sha256_of
from lightning_recall.indexes.recall import measure_recall
from lightning_recall.indexes.vector_index import Engine, VectorIndex, load_vectors, make_vectors

MODEL_FOLDER = "model"


class SearchIndex:
    """An index of N items, made by `build_index` and read by `open_index`.

    Attributes:
        path: folder of the index.
        vectors: the embeddings, in rows 0, ..., N - 1.
        items: what is known of the item in each row.
        manifest: kind, model, threshold and recall of the index.
    """

    def __init__(self, path: Path, vectors: VectorIndex, items: list[Item], manifest: Manifest) -> None:
        self.path = path
        self.vectors = vectors
        self.items = items
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.items)

    @property
    def model_folder(self) -> Path | None:
        """Folder of the model, for `RetrievalModule.from_pretrained`; None if the index has none."""
        folder = self.path / MODEL_FOLDER
        return folder if folder.is_dir() else None

    @property
    def threshold(self) -> float | None:
        """Similarity from which items count as a match; None if it is unknown.

        Raises:
            ValueError: if index.json has another value than a number.
        """
        known = self.manifest.similarity_threshold
        value = None if known is None else known.get("similarity")
        if known is not None and not isinstance(value, int | float):
            raise ValueError(f"{self.path} is damaged: its threshold is {value!r}. Build the index again.")
        return value

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and rows (Q, k) of the k nearest items of queries (Q, D); see `VectorIndex.search`."""
        return self.vectors.search(queries, k)

    def file(self, row: int) -> str:
        """Absolute path of the image of the item in a row; "" if it is unknown."""
        return image_file(self.items[row].path, self.manifest.image_folder)

    def add(self, embedding_set: EmbeddingSet) -> int:
        """Adds the items that the index does not have yet, on disk too. An interruption leaves the index as it was.

        An image file is known by its path, an item without a path by its id. Added image files get new ids. Lists and
        centroids of approximate kinds stay those of the first items.

        Returns:
            The number of added items.

        Raises:
            ValueError: for embeddings of another model or dimension, if an id belongs to another item, or if another
                process has changed the index since it was opened.
        """
        check_same_model(self.manifest.weights, embedding_set.model.get("weights", ""), embedding_set.path)
        self.vectors.check_dim(embedding_set.embeddings, f"{embedding_set.path}: embeddings have")
        with locked(self.path):
            if read_manifest(self.path).generation != self.manifest.generation or len(self.vectors) != len(self):
                raise ValueError(f"{self.path} has changed since it was opened: open it again.")
            folders = self.manifest.image_folder, image_folder_of(embedding_set)
            added = new_items(self.items, items_of(embedding_set), *folders)
            if added:
                self.vectors.add(embedding_set.embeddings[list(added)])
                items = [*self.items, *added.values()]
                generation = self.manifest.generation + 1
                self.manifest = save_files(
                    self.path, self.vectors, items, replace(self.manifest, generation=generation)
                )
                self.items = items
                remove_old_files(self.path, self.manifest)
        return len(added)


def build_index(
    embedding_set: EmbeddingSet,
    path: str | Path,
    kind: str = "auto",
    engine: Engine = "faiss",
    model_folder: Path | None = None,
    similarity_threshold: dict[str, Any] | None = None,
) -> SearchIndex:
    """Builds an index of embeddings in a new folder, with a copy of the model's folder.

    Args:
        embedding_set: N items. All are indexed, whether they are queries or gallery.
        path: folder that is created.
        kind: "exact" compares a query with all items. "hnsw" (a graph), "ivf" (inverted lists) and "pq" (product
            quantization, a sixteenth of the size) are faster or smaller and miss some neighbours. With faiss, any text
            that `faiss.index_factory` understands. "auto": "exact" below 100,000 items and "hnsw" from there.
        engine: "faiss" or "usearch", which has the kinds "exact" and "hnsw".
        model_folder: folder that `save_pretrained` has written; None: the one beside the embeddings, if there is one.
        similarity_threshold: similarity from which items count as a match, {"similarity": ...}; None: unknown.

    Raises:
        ValueError: if the folder exists, for an unknown kind or engine, and if the items are too few for the kind.
        ImportError: if the engine is not installed.

    >>> import tempfile, torch
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> items = EmbeddingSet(Path("embeddings"), embeddings, torch.arange(3), classes=["cat", "dog", "dog"])
    >>> index = build_index(items, Path(tempfile.mkdtemp(), "pets.faiss"))
    >>> similarities, rows = index.search(torch.tensor([[0.0, 2.0]]), k=2)
    >>> [index.items[row].class_name for row in rows[0]], similarities
    (['dog', 'dog'], tensor([[1.0000, 0.8000]]))
    """
    path = Path(path).expanduser()
    check_new(path)
    vectors = make_vectors(engine, kind, embedding_set.embeddings)
    recall = None if vectors.kind == "exact" else measure_recall(vectors, embedding_set.embeddings)
    manifest = Manifest(
        engine=engine,
        kind=vectors.kind,
        dim=vectors.dim,
        num_items=len(vectors),
        weights=embedding_set.model.get("weights", ""),
        image_folder=image_folder_of(embedding_set),
        recall=recall and recall._asdict(),
        similarity_threshold=similarity_threshold,
    )
    items = items_of(embedding_set)
    with new_folder(path) as unfinished:
        manifest = save_files(unfinished, vectors, items, manifest)
        model_folder = model_folder or embedding_set.model_folder
        if model_folder is not None:
            shutil.copytree(model_folder, unfinished / MODEL_FOLDER)
    return SearchIndex(path, vectors, items, manifest)


def open_index(path: str | Path) -> SearchIndex:
    """Reads an index. Its files are compared with their hashes first, which finds damage, but no malice.

    Args:
        path: folder that `build_index` or `lightning-recall index` has written. "~" is expanded.

    Raises:
        ValueError: if the folder is not an index, is damaged, or was written by a newer version.
        ImportError: if the engine is not installed.
    """
    path = Path(path).expanduser()
    manifest = read_manifest(path)
    try:
        manifest.check_files(path)
        vectors = load_vectors(manifest.engine, manifest.kind, path / manifest.index_name)
        items = read_items(path / manifest.items_name)
    except (ValueError, OSError):
        if read_manifest(path).generation != manifest.generation:  # items were added, and old files removed
            return open_index(path)
        raise
    if not len(vectors) == len(items) == manifest.num_items or vectors.dim != manifest.dim:
        raise ValueError(f"{path} is damaged: its files have different numbers of items. Build the index again.")
    return SearchIndex(path, vectors, items, manifest)


def check_new(path: Path) -> None:
    """Raises ValueError if a path exists."""
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists: choose another name, or add to the index with lightning-recall index --add.")


def check_same_model(weights: str, other: str, subject: Any) -> None:
    """Raises ValueError if two hashes of weights are known and differ.

    Args:
        weights: hash of the model of the index; "": unknown.
        other: hash of the model of embeddings or a folder; "": unknown.
        subject: what has the other hash, for the message.
    """
    if weights and other and weights != other:
        raise ValueError(
            f"The index belongs to another model than {subject}: their weights differ, so that their similarities "
            "mean nothing."
        )


def image_folder_of(embedding_set: EmbeddingSet) -> str:
    """Folder to which the paths of a set are relative, without links; "" if it is unknown.

    It is that of the set, or the working folder if the first file is found there only.
    """
    if not embedding_set.paths:
        return ""
    folder, first = str(embedding_set.image_folder or ""), embedding_set.paths[0]
    if os.path.exists(first) and not os.path.exists(os.path.join(folder or "/", first)):
        folder = os.getcwd()
    return os.path.realpath(folder) if folder else ""


def save_files(folder: Path, vectors: VectorIndex, items: list[Item], manifest: Manifest) -> Manifest:
    """Writes the files of a generation, and index.json last: until then, the previous generation is valid.

    Returns:
        The manifest, with the hashes of the files.
    """
    index_file, items_file = folder / manifest.index_name, folder / manifest.items_name
    try:
        vectors.save(index_file)
        write_items(items_file, items)
        manifest = replace(
            manifest,
            num_items=len(items),
            index_sha256=sha256_of(index_file),
            items_sha256=sha256_of(items_file),
        )
        manifest.write(folder)
    except BaseException:
        for file in (index_file, items_file):
            file.unlink(missing_ok=True)
        raise
    return manifest


def remove_old_files(folder: Path, manifest: Manifest) -> None:
    """Removes files of other generations, also those of an interrupted process."""
    for file in [*folder.glob("index-*"), *folder.glob("items-*")]:
        if file.name not in (manifest.index_name, manifest.items_name):
            file.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` at the end; it is removed if an error is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time change a folder; the lock ends with the process.

    Raises:
        ValueError: if another process has the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"Another process is adding to {folder}: wait until it ends.") from error
        yield
    finally:
        os.close(descriptor)
