from pathlib import Path

import pytest
import torch

from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.indexes import export_to_qdrant, qdrant
from lightning_recall.search import EmbeddingBlocks, nearest

qdrant_client = pytest.importorskip("qdrant_client")  # an extra

IDS = torch.arange(10, 310)
EMBEDDINGS = 3 * torch.randn(300, 8, generator=torch.Generator().manual_seed(3))
GIVEN = EmbeddingSet(
    *(Path("embeddings"), EMBEDDINGS, IDS, IDS % 3),
    paths=[f"{n}.jpg" for n in IDS.tolist()],
    classes=[f"class {n % 3}" for n in IDS.tolist()],
    image_folder=Path("/photos"),
)


@pytest.fixture
def client():
    client = qdrant_client.QdrantClient(":memory:")
    yield client
    client.close()


def test_a_collection_finds_the_nearest_items(client):
    export_to_qdrant(GIVEN, client, "shop")
    assert client.count("shop").count == 300
    queries = torch.randn(9, 8, generator=torch.Generator().manual_seed(4))
    similarities, rows = nearest(EmbeddingBlocks(queries), EmbeddingBlocks(EMBEDDINGS), 5)
    for query, values, items in zip(queries, similarities, rows, strict=True):
        points = client.query_points("shop", query.tolist(), limit=5).points
        assert [point.id for point in points] == IDS[items].tolist()
        torch.testing.assert_close(torch.tensor([point.score for point in points]), values, atol=1e-5, rtol=0)
        for point in points:
            assert point.payload == {
                "path": f"/photos/{point.id}.jpg",
                "label": point.id % 3,
                "class": f"class {point.id % 3}",
            }


def test_what_is_not_known_is_left_out(client):
    export_to_qdrant(GIVEN._replace(labels=None, paths=None, classes=None), client, "shop")
    (point,) = client.retrieve("shop", [12])
    assert point.payload == {}
    export_to_qdrant(GIVEN._replace(image_folder=None), client, "relative")
    assert client.retrieve("relative", [12])[0].payload["path"] == "12.jpg"


def test_a_local_folder_keeps_the_collection(tmp_path):
    few = GIVEN._replace(embeddings=EMBEDDINGS[:20], ids=IDS[:20], labels=None, paths=None, classes=None)
    folder = str(tmp_path / "shop")
    client = qdrant.connect(folder)
    export_to_qdrant(few, client, "shop")
    client.close()
    with pytest.raises(ValueError, match="shop exists: pass a new folder for Qdrant, or the URL of a server"):
        qdrant.connect(folder)
    client = qdrant_client.QdrantClient(path=folder)
    (point,) = client.query_points("shop", EMBEDDINGS[7].tolist(), limit=1).points
    assert (point.id, point.score) == (17, pytest.approx(1))
    client.close()


def test_nothing_is_overwritten(client):
    export_to_qdrant(GIVEN, client, "shop")
    with pytest.raises(ValueError, match="Qdrant has a collection shop: choose another name, or delete it"):
        export_to_qdrant(GIVEN._replace(embeddings=-EMBEDDINGS), client, "shop")
    assert client.count("shop").count == 300


def test_an_interrupted_upload_leaves_nothing(client, monkeypatch):
    sent = []

    def upsert(_, points):
        sent.append(len(points))
        if len(sent) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(client, "upsert", upsert)
    with pytest.raises(KeyboardInterrupt):
        export_to_qdrant(GIVEN, client, "shop")
    assert sent == [256, 44]
    assert not client.collection_exists("shop")


def test_errors(client, monkeypatch):
    with pytest.raises(ValueError, match="Qdrant takes ids of at least 0, got -1"):
        export_to_qdrant(GIVEN._replace(ids=IDS - 11), client, "shop")
    with pytest.raises(ValueError, match=r"Qdrant cannot be reached at http://127.0.0.1:1: "):
        qdrant.connect("http://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "qdrant_client", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-recall\[qdrant\]"'):
        export_to_qdrant(GIVEN, client, "shop")
