import http.server
import threading
import time

import pytest
from conftest import draw

from lightning_recall.benchmarks import service


@pytest.fixture
def server():
    """A server that takes 20 ms for each request, and keeps their bodies; it fails if `status` is not 200."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(0.02)
            self.send_response(self.server.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.bodies, server.status = [], 200
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def images(tmp_path):
    for number in range(3):
        draw(tmp_path / "photos" / f"{number}.jpg")
    return tmp_path / "photos"


def test_prints_images_per_second(server, images, capsys, monkeypatch):
    post_for = service.post_for
    monkeypatch.setattr(service, "post_for", lambda *given: post_for(*given[:3], min(given[3], 0.2)))
    url = f"http://127.0.0.1:{server.server_port}/embed"
    service.main([str(images), "--url", url, "--concurrency", "1", "4"])
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["1", "4"]
    assert 0 < float(rows[0][1]) <= 50
    assert 0 < float(rows[1][1]) <= 200
    assert min(int(row[2]) for row in rows) >= 20
    sent = {path.read_bytes() for path in images.iterdir()}
    assert {body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0] for body in server.bodies} == sent


def test_an_error_is_no_measurement(server, images, tmp_path):
    server.status = 400
    with pytest.raises(RuntimeError, match=r"The server at .* failed: 400 \{\}"):
        service.main([str(images), "--url", f"http://127.0.0.1:{server.server_port}/embed"])
    with pytest.raises(ValueError, match="holds no image files"):
        service.main([str(tmp_path / "none")])
