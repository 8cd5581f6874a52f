"""Copies embeddings to a collection of Qdrant (https://qdrant.tech), which needs the extra `qdrant`."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lightning_recall.checks import first_line
from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.indexes.items import Item, image_file, items_of
from lightning_recall.search import EmbeddingBlocks

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

BATCH_SIZE = 256
"""points in a request"""


def export_to_qdrant(embedding_set: EmbeddingSet, client: "QdrantClient", collection: str) -> None:
    """Creates a collection with a point for each item: its id, its unit embedding, and path, label and class.

    The distance of the collection is cosine. If an upload fails, the collection is deleted again. Shows a progress bar.

    Args:
        embedding_set: N items, with ids of at least 0.
        client: connection to a server, or `QdrantClient(":memory:")`.
        collection: name of the new collection.

    Raises:
        ValueError: if the collection exists, or an id is negative.
        ImportError: if `qdrant_client` is not installed.
    """
    models = import_qdrant().models
    if int(embedding_set.ids.min()) < 0:
        raise ValueError(f"Qdrant takes ids of at least 0, got {int(embedding_set.ids.min())}.")
    if client.collection_exists(collection):
        raise ValueError(f"Qdrant has a collection {collection}: choose another name, or delete it.")
    blocks = EmbeddingBlocks(embedding_set.embeddings)
    items, folder = items_of(embedding_set), str(embedding_set.image_folder or "")
    vectors = models.VectorParams(size=blocks.dim, distance=models.Distance.COSINE)
    client.create_collection(collection, vectors_config=vectors)
    try:
        for start in tqdm(range(0, len(items), BATCH_SIZE), f"To {collection}", unit=f" x {BATCH_SIZE} items", delay=2):
            batch = items[start : start + BATCH_SIZE]
            embeddings = blocks.block(start, start + len(batch)).tolist()
            points = [
                models.PointStruct(id=item.id, vector=embedding, payload=payload_of(item, folder))
                for item, embedding in zip(batch, embeddings, strict=True)
            ]
            client.upsert(collection, points)
    except BaseException:
        with suppress(Exception):  # the server may be gone; the first error is the one to see
            client.delete_collection(collection)
        raise


def connect(target: str) -> "QdrantClient":
    """Connects to a server, with the key in the environment variable QDRANT_API_KEY, or makes a local folder.

    Qdrant's client keeps points in a local folder as pickles. What others have put there could run code, so that only
    a new folder is taken.

    Args:
        target: a URL that starts with http:// or https://, or a folder.

    Raises:
        ValueError: if the server does not answer, or the folder is not empty.
        ImportError: if `qdrant_client` is not installed.
    """
    qdrant_client = import_qdrant()
    if not target.startswith(("http://", "https://")):
        folder = Path(target).expanduser()
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"{target} exists: pass a new folder for Qdrant, or the URL of a server.")
        return qdrant_client.QdrantClient(path=str(folder))  # type: ignore[no-any-return]  # the module is typed Any
    key = os.environ.get("QDRANT_API_KEY")
    client: QdrantClient = qdrant_client.QdrantClient(url=target, api_key=key, check_compatibility=False)
    try:
        client.get_collections()
    except (ValueError, qdrant_client.http.exceptions.ApiException) as error:
        client.close()
        raise ValueError(f"Qdrant cannot be reached at {target}: {first_line(error)}.") from error
    return client


def payload_of(item: Item, image_folder: str) -> dict[str, Any]:
    """What is known of an item: path, label and class."""
    path = image_file(item.path, image_folder) if image_folder else item.path
    known = {"path": path, "label": item.label, "class": item.class_name}
    return {name: value for name, value in known.items() if value not in ("", None)}


def import_qdrant() -> Any:
    """The module qdrant_client.

    Raises:
        ImportError: with the line for pip.
    """
    try:
        import qdrant_client.models
    except ImportError as error:
        raise ImportError('Qdrant needs its client: pip install "lightning-recall[qdrant]"') from error
    return qdrant_client
