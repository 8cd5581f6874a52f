import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
import yaml

import lightning_recall

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", lightning_recall.__all__)
def test_public_names_are_there(name):
    assert getattr(lightning_recall, name).__name__ == name
    assert name in dir(lightning_recall)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'RecallLoss'"):
        _ = lightning_recall.RecallLoss


def test_version_is_told_once():
    assert importlib.metadata.version("lightning-recall") == lightning_recall.__version__


LEAVES = ("gather", "losses", "metrics", "mixup", "models", "recompute", "samplers")
IMPORT_LEAVES = """
import importlib, sys
for leaf in sys.argv[1:]:
    importlib.import_module(f"lightning_recall.{leaf}")
    print(leaf, bool({"pytorch_lightning", "lightning", "lightning_fabric"} & set(sys.modules)))
"""


def test_leaves_do_without_lightning():
    command = [sys.executable, "-c", IMPORT_LEAVES, *LEAVES]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:-1] == [f"{leaf} False" for leaf in LEAVES]


def test_compromised_releases_of_lightning_are_excluded():
    requirements = [r.replace(" ", "") for r in importlib.metadata.requires("lightning-recall")]
    (lightning,) = [r for r in requirements if r.startswith("pytorch-lightning")]
    assert "!=2.6.2" in lightning
    assert "!=2.6.3" in lightning


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lightning_recall.__version__
    assert citation["license"] == importlib.metadata.metadata("lightning-recall")["License"]


WITHOUT_EXTRAS = """
import builtins, importlib, pkgutil
extras, real = "faiss sklearn scipy onnx onnxruntime onnxscript tensorboard pytorch_metric_learning".split(), __import__
def importer(name, globals=None, *rest, **options):
    if name.split(".")[0] in extras and (globals or {}).get("__name__", "").startswith("lightning_recall"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, *rest, **options)
builtins.__import__ = importer  # others, such as torchmetrics, may use what is installed
import lightning_recall
for module in pkgutil.walk_packages(lightning_recall.__path__, "lightning_recall."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from lightning_recall.metrics import ClusterNMI
try:
    ClusterNMI()
except ImportError as error:
    print(error)
"""


def test_every_module_imports_without_the_extras():
    result = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=True)
    assert "lightning-recall[nmi]" in result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source distribution, built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("built")
    wanted = [ROOT / name for name in ("configs", "lightning_recall", "docs", "tests")]
    wanted += ROOT.glob("[!.]*.*")  # not .venv: 6 GB
    for path in [*wanted, ROOT / "LICENSE", ROOT / "Makefile"]:
        if path.is_dir() and path.suffix == "":
            shutil.copytree(path, folder / "tree" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            (folder / "tree").mkdir(exist_ok=True)
            shutil.copy(path, folder / "tree")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "tree")]
    subprocess.run(command, capture_output=True, text=True, check=True)
    return folder / "dist"


def test_the_wheel_works_in_an_environment_of_its_own(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    venv.create(tmp_path / "env", symlinks=True)
    scripts = tmp_path / "env" / "bin"
    command = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # of this environment: torch and the like
    shown = subprocess.run(
        [scripts / "lightning-recall", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert "fit,validate,test,predict" in shown
    code = "import lightning_recall as l; print(l.__file__, l.__version__, l.RecallAtKLoss())"
    told = subprocess.run(
        [scripts / "python", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert told.startswith(str(site))
    assert {path.name for path in (site / "lightning_recall").rglob("*") if path.suffix in (".typed", ".html")} == {
        "py.typed",
        "report.html",
    }
    assert not (site / "tests").exists()


def test_the_source_distribution_holds_what_the_tests_need(distributions):
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"configs/glyphs.yaml", "tests/conftest.py", "tests/losses/test_circle.py", "README.md", "LICENSE"}
    assert needed | {"CITATION.cff", "CHANGELOG.md", "docs/report.png", "setup.cfg", "Makefile"} <= names
