"""The server of docs/how_to/service.md, over HTTP."""

import io
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_networks import make_embedder
from PIL import Image

from lightning_recall import RecallAtKLoss, RetrievalModule
from lightning_recall.data import ImageTransforms
from lightning_recall.modules import export_module

PAGE = Path(__file__).parent.parent / "docs" / "how_to" / "service.md"
SERVER = re.search(r'```python title="server.py"\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]
SECONDS = 60  # to start, and to answer
pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.9", reason="torch's exporter fixes the number of images before 2.9"
)


@pytest.fixture(scope="module")
def module():
    embedder, size = make_embedder("convnext")
    module = RetrievalModule(embedder, RecallAtKLoss()).eval()
    module.image_transforms = ImageTransforms(size=size, resize=size)
    return module


@pytest.fixture(scope="module")
def names(module, tmp_path_factory):
    """Names of the server's code, run with an exported model."""
    for extra in ("fastapi", "python_multipart", "onnxscript", "onnxruntime"):
        pytest.importorskip(extra)
    path = tmp_path_factory.mktemp("service") / "model.onnx"
    export_module(module, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(path))
        names = {"__name__": "server"}
        exec(SERVER, names)
    return names


@pytest.fixture(scope="module")
def client(names):
    """An HTTP client of the server, which runs in a thread, on a free port."""
    httpx, uvicorn = pytest.importorskip("httpx"), pytest.importorskip("uvicorn")
    settings = {"log_level": "error", "lifespan": "off", "ws": "none", "loop": "asyncio"}
    server = uvicorn.Server(uvicorn.Config(names["app"], **settings))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        deadline = time.monotonic() + SECONDS
        while not server.started:
            assert time.monotonic() < deadline, "The server did not start."
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, trust_env=False) as client:
            yield client
        server.should_exit = True
        thread.join(SECONDS)
    assert not thread.is_alive()


def encoded(size, image_format="JPEG"):
    """A smooth image as file, another one for each size."""
    coarse = np.random.default_rng(size).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, image_format)
    return file.getvalue()


def post(client, *contents):
    return client.post("/embed", files=[("files", (f"{i}.jpg", content)) for i, content in enumerate(contents)])


def test_embeddings_are_those_of_the_module(client, module, tmp_path):
    contents = [encoded((32, 47)), encoded((32, 32), "PNG"), encoded((200, 150))]  # the last one is resized
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    answer = post(client, *contents)
    assert answer.status_code == 200, answer.text
    found = torch.tensor(answer.json()["embeddings"])
    expected = module(torch.stack([module.preprocess(tmp_path / str(number)) for number in range(3)])).detach()
    torch.testing.assert_close(found[:2], expected[:2], atol=1e-4, rtol=0)
    assert (found[2] @ expected[2]) > 0.999
    assert (expected[0] @ expected[1]).abs() < 0.99
    single = post(client, contents[1]).json()["embeddings"]
    torch.testing.assert_close(torch.tensor(single), expected[1:2], atol=1e-4, rtol=0)
    assert client.get("/health").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("contents", "status", "message"),
    [
        ([b"not an image"], 400, "0.jpg: This is not an image file that Pillow can decode"),
        ([encoded((60, 60)), encoded((60, 60))[:300]], 400, "1.jpg: This is not an image file that Pillow can decode"),
        ([b""], 400, "0.jpg: This is not an image file"),
        ([b""] * 33, 413, "The request has 33 images, more than 32."),
        ([encoded((400, 300))], 400, "The image has 400 x 300 pixels, more than 100000: send a smaller one."),
        ([bytes(20_000)], 413, "bytes, more than 20000."),
    ],
    ids=["text", "truncated", "empty", "many", "pixels", "bytes"],
)
def test_bad_requests_are_refused_with_a_sentence(contents, status, message, client, names, monkeypatch):
    monkeypatch.setitem(names, "MAX_PIXELS", 100_000)
    monkeypatch.setitem(names, "MAX_BYTES", 20_000)
    answer = post(client, *contents)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]


def test_requests_without_length_or_images(client):
    assert client.post("/embed", content=iter([b"abc"])).status_code == 411
    assert client.post("/embed").status_code == 422
    assert client.get("/docs").status_code == 404
