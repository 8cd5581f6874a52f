import ast
import configparser
import importlib.metadata
import os
import re
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
from lightning_recall import adaptation, segmentation

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", lightning_recall.__all__)
def test_public_names_are_there(name):
    assert getattr(lightning_recall, name).__name__ == name
    assert name in dir(lightning_recall)


@pytest.mark.parametrize("name", segmentation.__all__)
def test_public_names_of_segmentation_are_there(name):
    assert getattr(segmentation, name).__name__ == name
    assert name in dir(segmentation)


@pytest.mark.parametrize("name", adaptation.__all__)
def test_public_names_of_adaptation_are_there(name):
    assert getattr(adaptation, name).__name__ == name
    assert name in dir(adaptation)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'RecallLoss'"):
        _ = adaptation.RecallLoss
    with pytest.raises(AttributeError, match="no attribute 'RecallLoss'"):
        _ = segmentation.RecallLoss
    with pytest.raises(AttributeError, match="no attribute 'RecallLoss'"):
        _ = lightning_recall.RecallLoss


def test_the_version_has_one_source():
    assert importlib.metadata.version("lightning-recall") == lightning_recall.__version__


LEAVES = ("gather", "losses", "metrics", "mixup", "models", "plots", "recompute", "samplers", "search")
LEAVES += ("embedding_sets", "comparison", "compression", "indexes", "sharing")
LEAVES += ("segmentation.losses", "segmentation.models", "segmentation.scores")
ADAPTATION = ("domain_mixup", "gradient_reversal", "losses", "models", "scores")
LEAVES += tuple(f"adaptation.{name}" for name in ADAPTATION)
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


def requirements(section, option):
    """Name -> specifier of the requirements in an option of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [line.replace(" ", "") for line in config[section][option].splitlines()]
    found = [re.fullmatch(r"([\w-]+)(\[[\w,-]+\])?(.*)", line) for line in lines if line and not line.startswith("#")]
    return {match[1]: match[3] for match in found}


def extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


@pytest.mark.parametrize(
    ("name", "section", "option"),
    [
        ("pytorch-lightning", "options", "install_requires"),
        ("lightning", "options.extras_require", "lightning"),
    ],
)
def test_compromised_releases_of_lightning_are_excluded(name, section, option):
    specifier = requirements(section, option)[name]
    assert set(specifier.split(",")) == {">=2.6", "!=2.6.2", "!=2.6.3"}


DISTRIBUTIONS = {"PIL": "pillow", "faiss": "faiss-cpu", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""import name -> name of the distribution, where it is another"""
WITH_LIGHTNING = {"lightning_fabric"}  # installed with pytorch-lightning
PEERS = {
    "grad-cache",
    "sentence-transformers",
    "transformers",
}  # a benchmark compares with them if they are installed, and says how to install them


def imported_distributions(paths):
    """Distributions that files import, without the standard library and this package."""
    found = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text()))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        found |= {module.split(".")[0] for module in modules}
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"lightning_recall", "tests_of"}
    others = found - set(sys.stdlib_module_names) - WITH_LIGHTNING - own
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in others}


def test_every_import_of_the_package_is_declared():
    package = ROOT / "lightning_recall"
    everywhere = [path for path in package.rglob("*.py") if "benchmarks" not in path.parts]
    declared = set(requirements("options", "install_requires"))
    optional = {name for extra in extras() - {"dev"} for name in requirements("options.extras_require", extra)}
    assert imported_distributions(everywhere) <= declared | optional
    tools = set(requirements("options.extras_require", "dev"))
    assert imported_distributions((package / "benchmarks").rglob("*.py")) <= declared | optional | tools | PEERS
    assert not declared & (optional | tools)


def test_optional_imports_stand_inside_functions():
    """An import at the top of a file needs a package that is always installed."""
    declared = set(requirements("options", "install_requires"))
    for path in (ROOT / "lightning_recall").rglob("*.py"):
        if "benchmarks" not in path.parts:
            tree = ast.parse(path.read_text())
            top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            modules = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
            modules += [node.module for node in top if isinstance(node, ast.ImportFrom)]
            names = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"lightning_recall"}
            assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names} <= declared, path


def test_every_import_of_the_tests_is_declared():
    declared = set(requirements("options", "install_requires"))
    declared |= {name for extra in extras() for name in requirements("options.extras_require", extra)}
    with_declared = {"griffe"}  # installed with mkdocstrings
    assert imported_distributions((ROOT / "tests").rglob("*.py")) <= declared | with_declared


def test_the_test_tools_name_the_extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    (own,) = [line for line in config["options.extras_require"]["dev"].split() if line.startswith("lightning-recall")]
    assert own == f"lightning-recall[{','.join(sorted(extras() - {'dev'}))}]"


def test_no_file_names_a_package_registry():
    for name in ("setup.cfg", "pyproject.toml", "Makefile", ".github/workflows/tests.yml", ".pre-commit-config.yaml"):
        assert not re.search(r"index-url|pypi|https?://", (ROOT / name).read_text()), name


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
    wanted = [ROOT / name for name in ("configs", "lightning_recall", "docs", "tests", ".github")]
    wanted += ROOT.glob("[!.]*.*")  # not .venv: 6 GB
    for path in [*wanted, ROOT / "LICENSE", ROOT / "Makefile", ROOT / ".pre-commit-config.yaml"]:
        if path.is_dir() and path.suffix in ("", ".github"):
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
    options = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    options["env"] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    scripts = tmp_path / "env" / "bin"
    command = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], **options)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # torch and the others of this environment
    shown = subprocess.run([scripts / "lightning-recall", "--help"], **options).stdout
    assert "fit,validate,test,predict" in shown
    code = "import lightning_recall as l; print(l.__file__, l.__version__, l.RecallAtKLoss())"
    printed = subprocess.run([scripts / "python", "-c", code], **options).stdout
    assert printed.startswith(str(site))
    assert {path.name for path in (site / "lightning_recall").rglob("*") if path.suffix in (".typed", ".html")} == {
        "py.typed",
        "report.html",
        "compare.html",
    }
    assert not (site / "tests").exists()


def test_the_source_distribution_holds_what_the_tests_need(distributions):
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"configs/glyphs.yaml", "tests/conftest.py", "tests/losses/test_circle.py", "README.md", "LICENSE"}
    assert needed | {"CITATION.cff", "CHANGELOG.md", "docs/report.png", "setup.cfg", "Makefile"} <= names
    assert {".github/workflows/tests.yml", ".pre-commit-config.yaml", "MANIFEST.in"} <= names
