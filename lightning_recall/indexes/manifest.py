"""`index.json`: what an index is, which model it belongs to, and the hashes of its files."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lightning_recall.embedding_sets.shards import write_atomically

FORMAT = 1
"""version of the files of an index; to be raised if an earlier release could not read them"""
MANIFEST = "index.json"


@dataclass(frozen=True)
class Manifest:
    """What an index is.

    Attributes:
        engine: "faiss" or "usearch".
        kind: "exact", "hnsw", ...
        dim: D, the dimension of the embeddings.
        num_items: N.
        index_sha256: hash of the file of the engine.
        items_sha256: hash of the file of the items.
        generation: 1, and 1 more each time items are added; part of the names of the files.
        weights: hash of the weights of the model; "": unknown.
        image_folder: absolute folder to which paths are relative; "": unknown.
        recall: `IndexRecall` as a dictionary; None for exact kinds.
        similarity_threshold: that of the model when the index was built; None: unknown.
        format: version of the files.
    """

    engine: str
    kind: str
    dim: int
    num_items: int
    index_sha256: str = ""
    items_sha256: str = ""
    generation: int = 1
    weights: str = ""
    image_folder: str = ""
    recall: dict[str, Any] | None = None
    similarity_threshold: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def index_name(self) -> str:
        """Name of the file of the engine."""
        return f"index-{self.generation}.{self.engine}"

    @property
    def items_name(self) -> str:
        """Name of the file of the items."""
        return f"items-{self.generation}.csv"

    def write(self, folder: Path) -> None:
        """Writes index.json to a folder, atomically."""
        text = json.dumps(asdict(self), indent=1)
        write_atomically(folder / MANIFEST, lambda file: file.write_text(text, encoding="utf-8"))

    def check_files(self, folder: Path) -> None:
        """Raises ValueError if a file of the index is missing or damaged."""
        for name, expected in ((self.index_name, self.index_sha256), (self.items_name, self.items_sha256)):
            file = folder / name
            if not file.is_file():
                raise ValueError(f"{folder} is damaged: it has no {name}. Build the index again.")
            if sha256_of(file) != expected:
                raise ValueError(f"{file} is damaged: its hash is not that of index.json. Build the index again.")


def read_manifest(folder: Path) -> Manifest:
    """Reads index.json.

    Raises:
        ValueError: if the folder is not an index, was written by a newer version, or index.json is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        kind = "has no index.json" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} is not an index, it {kind}: build one with lightning-recall index.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        is_newer = content["format"] > FORMAT
        manifest = None if is_newer else manifest_of(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: build the index again. ({error})") from error
    if manifest is None:
        raise ValueError(f"{folder} was written by a newer lightning-recall: upgrade it to read this index.")
    return manifest


def manifest_of(content: dict[str, Any]) -> Manifest:
    """The manifest of a JSON object. Names of files are made of its values, so that their types matter.

    Raises:
        TypeError: if a field is missing.
        ValueError: if a field is of another type than `Manifest` declares.
    """
    manifest = Manifest(**{field.name: content[field.name] for field in fields(Manifest) if field.name in content})
    for field in fields(Manifest):
        value = getattr(manifest, field.name)
        is_valid = type(value) is field.type if field.type in (int, str) else isinstance(value, dict | None)
        if not is_valid:
            raise ValueError(f"{field.name} is {value!r}")
    return manifest


def sha256_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
