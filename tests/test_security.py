"""What docs/security.md promises of files: nothing in them is run, and pages load nothing."""

import ast
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch

from lightning_recall import RetrievalModule
from lightning_recall.adaptation import DANNModule
from lightning_recall.segmentation import SegmentationModule

PACKAGE = Path(__file__).parent.parent / "lightning_recall"
FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted(PACKAGE.rglob("*.html"))
UNPICKLES = {"datamodules/revisited.py"}  # with RestrictedUnpickler
EXECUTES = {"benchmarks/published.py"}  # measures published code, whose folder the user gives
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load"}


def violations(code, name=""):
    """What a file does that could run the contents of another file."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            unpickles = FORBIDDEN_MODULES & {str(module).partition(".")[0] for module in modules}
            only_errors = isinstance(node, ast.ImportFrom) and {a.name for a in node.names} <= {"UnpicklingError"}
            if unpickles and not only_errors and name not in UNPICKLES:
                yield f"imports {unpickles}"
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                (called in FORBIDDEN_CALLS and name not in EXECUTES)
                or given.get("shell") == "True"
                or given.get("allow_pickle") == "True"
            ):
                yield f"calls {ast.unparse(node)}"
            if called == "torch.load" and given.get("weights_only") not in ("True", "weights_only"):
                yield f"unpickles without weights_only: {ast.unparse(node)}"
            if called.endswith("Environment") and "jinja" in code and given.get("autoescape") != "True":
                yield f"does not escape: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_in_a_file_is_run(path):
    assert list(violations(path.read_text(), str(path.relative_to(PACKAGE)))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "yaml.load(file)",
        "subprocess.run(text, shell=True)",
        "from jinja2 import Environment\nEnvironment(undefined=StrictUndefined)",
    ],
)
def test_violations_are_found(code):
    assert len(list(violations(code))) == 1


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("module", [RetrievalModule, SegmentationModule, DANNModule])
def test_a_checkpoint_from_a_url_is_not_unpickled(module, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    checkpoint = {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "attack": Attack(str(tmp_path / "created"))}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    handler = partial(SilentHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UnpicklingError, match="Weights only load failed"):
            module.load_from_checkpoint(f"http://127.0.0.1:{server.server_port}/a.ckpt")
        server.shutdown()
    assert not (tmp_path / "created").exists()


class SilentHandler(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_):
        """Logs nothing."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_load_nothing_and_escape_everything(page):
    text = page.read_text()
    assert not re.search(r"https?://|@import|url\(|\|\s*safe\b|innerHTML|document\.write|insertAdjacentHTML", text)
    assert "autoescape false" not in text


def test_there_are_pages():
    assert PAGES
