"""The documentation: its snippets and training commands run, its other commands are parsed, its site is built."""

import argparse
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml

from lightning_recall import ImageEmbedder, RetrievalEvaluation, RetrievalModule
from lightning_recall._lightning import Trainer
from lightning_recall.cli.tools import TOOLS, tool_parser
from lightning_recall.models import SmallConvNet

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference")
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
TUTORIAL = ROOT / "docs" / "tutorial.md"
OWN_DATA = ROOT / "docs" / "how_to" / "own_data.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^lightning-recall .*$", re.MULTILINE)
ALL_COMMANDS = sorted({line for page in PAGES for line in COMMAND.findall(page.read_text())})
TOOL_COMMANDS = [line for line in ALL_COMMANDS if line.split()[1] in TOOLS]
COMMANDS = [line for line in ALL_COMMANDS if line not in TOOL_COMMANDS]
TRAININGS = [
    line
    for line in COMMANDS
    if line.startswith("lightning-recall fit") and "configs/glyphs.yaml" in line
    if "--ckpt_path" not in line and "--trainer.devices" not in line
]
BENCHMARK = re.compile(r"python -m (lightning_recall\.benchmarks\.\w+)([^`\n]*)")
BENCHMARKS = sorted({match for page in [*PAGES, ROOT / "README.md"] for match in BENCHMARK.findall(page.read_text())})
DOCUMENTED = [(page.stem, path) for page in REFERENCE for path in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
ROOMS = (
    *("losses", "recompute", "models", "samplers", "search", "metrics", "plots"),
    *("embedding_sets", "comparison", "compression", "indexes", "sharing"),
    *("optimization", "data", "callbacks", "cli", "modules", "datamodules"),
    *(f"segmentation.{room}" for room in ("losses", "models", "data", "datamodules", "callbacks")),
    *(f"adaptation.{room}" for room in ("models", "data", "datamodules", "callbacks")),
)
AFTER_TRAINING = [line for line in COMMAND.findall((ROOT / "README.md").read_text()) if line.split()[1] in TOOLS]
SHORT = {
    "fit": "--trainer.max_epochs 1 --trainer.limit_train_batches 1 --trainer.check_val_every_n_epoch 1",
    "test": "--trainer.limit_test_batches 2",
    "predict": "--trainer.limit_predict_batches 1",
}
pytestmark = pytest.mark.usefixtures("quick_parsing")


def offline_blocks(page):
    """Python blocks of a page that need no trained model; `test_your_images_are_searched` runs the others."""
    return [block for block in BLOCK.findall(page.read_text()) if "FOLDER" not in block]


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=lambda page: page.stem)
def test_snippets_run(page):
    blocks = offline_blocks(page)
    if any("import pytorch_metric_learning" in block or "from pytorch_metric_learning" in block for block in blocks):
        pytest.importorskip("pytorch_metric_learning")  # a test tool
    names = {}
    for block in blocks:
        exec(block, names)


def test_loss_data_and_metric_of_your_own_train_together(in_tmp_path, capsys):  # noqa: ARG001  # Lightning writes here
    names = {}
    for page in ("own_loss", "own_data", "own_metric"):
        for block in offline_blocks(ROOT / "docs" / "how_to" / f"{page}.md"):
            exec(block, names)
    embedder = ImageEmbedder(SmallConvNet(in_channels=3), embedding_dim=8, norm="batch")
    callbacks = [RetrievalEvaluation(ks=(1,)), names["LogClassSpread"](), names["WorstRank"]()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, **quiet)
    trainer.fit(RetrievalModule(embedder, names["MeanRankLoss"](), chunk_size=4), datamodule=names["data"])
    assert 0 < trainer.callback_metrics["val/class_spread"] < 2
    trainer.test(datamodule=names["data"], verbose=False, ckpt_path=None, model=trainer.lightning_module)
    assert "worst rank: " in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:OneCycleLR ends after")
def test_the_tutorial_runs_in_its_order(command, in_tmp_path, monkeypatch, glyph_folder):
    """Up to the variations, with fewer batches: the folders of the runs are those that the text names."""
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    (in_tmp_path / "lightning_recall").symlink_to(glyph_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp_path))
    monkeypatch.setattr("lightning_recall.callbacks.RetrievedImages.on_test_end", lambda *_: None)  # half of the time
    text = TUTORIAL.read_text().split("## Change a setting")[0]
    names, steps = {}, 0
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        if block.startswith("lightning-recall "):
            subcommand, *options = shlex.split(block)[1:]
            short = f"{SHORT[subcommand]} --trainer.enable_progress_bar false"
            command(subcommand, *options, *short.split())
            steps += 1
        elif "import" in block:
            exec(block, names)
            steps += 1
    assert steps == 5
    assert (in_tmp_path / "runs/glyphs/version_1/report.html").exists()
    assert names["neighbors"][:, 0].tolist() == [0, 1, 2]  # each image finds itself
    assert int(names["nearest"][0]) == 0


SMALL = (
    *("--model.embedder.backbone", "resnet10t", "--model.embedder.pretrained", "false", "--data.num_workers", 0),
    *("--data.batch_size", 8, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false"),
    *("--data.transforms", "ImageTransforms", "--data.transforms.size", 64, "--data.transforms.resize", 64),
)


@pytest.mark.filterwarnings("ignore:No row for")  # the folder has too few images for a product quantizer
def test_your_images_are_searched(command, small_data, in_tmp_path):
    """The commands and the faiss block of own_data.md, in their order, and those of the README for what comes after."""
    pytest.importorskip("faiss")  # an extra
    pytest.importorskip("onnxscript")  # an extra
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    folder, table = small_data("image_folder"), small_data("image_table") / "images"
    for line in COMMAND.findall(OWN_DATA.read_text()):
        line = line.replace("FOLDER", str(folder)).replace("TABLE", str(table))
        command(*shlex.split(line)[1:], *SMALL)
    (block,) = (block for block in BLOCK.findall(OWN_DATA.read_text()) if "FOLDER" in block)
    names = {}
    exec(block.replace("QUERY.jpg", str(folder / "class 1" / "0.png")).replace("FOLDER", str(folder)), names)
    assert names["similarities"][0, 0] > names["similarities"][0, -1]
    assert plt.imread("neighbors.png").std() > 0.1
    config = ("--config", "configs/your_images.yaml", "--data.root", folder)
    command("predict", *config, *SMALL)  # of the network without training
    first, second = sorted(Path("runs/your_images").glob("*/embeddings"))
    names = {"A/embeddings": str(second), "B/embeddings": str(first)}
    names["QUERY.jpg"] = shlex.quote(str(folder / "class 1" / "0.png"))
    for line in AFTER_TRAINING:
        for name, replacement in names.items():
            line = line.replace(name, replacement)
        few_items = ("--ks", "1", "--dims", "4") if " sizes " in line else ()
        command(*shlex.split(line)[1:], *few_items)
    for path in ("comparison/compare.html", "sizes.png", "shop.faiss/index.json", "found.png", "model.onnx"):
        assert Path(path).stat().st_size > 100
    assert RetrievalModule.from_pretrained("shared_model").preprocess("found.png").shape == (3, 64, 64)


@pytest.mark.filterwarnings("ignore:.* lists .* images of .* classes, but the published split")
def test_the_papers_experiment_runs(command, small_data, in_tmp_path):
    """The first commands of reproduce_paper.md, in their order."""
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    fit, test = COMMAND.findall((ROOT / "docs" / "reproduce_paper.md").read_text())[:2]
    folder = str(small_data("sop"))
    for line in (fit, test):
        command(*shlex.split(line.replace("FOLDER", folder))[1:], *SMALL)
    assert (in_tmp_path / "runs/sop/version_1/metrics.csv").exists()


@pytest.mark.filterwarnings("ignore:OneCycleLR ends after")
@pytest.mark.parametrize("line", TRAININGS)
def test_trainings_run(line, command, in_tmp_path, monkeypatch, glyph_folder):
    if "pytorch_metric_learning" in line:
        pytest.importorskip("pytorch_metric_learning")  # a test tool
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    (in_tmp_path / "lightning_recall").symlink_to(glyph_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp_path))
    command(*shlex.split(line)[1:], "--trainer.fast_dev_run", 1)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in TRAININGS])
def test_commands_are_understood(line, command, in_tmp_path, capsys):
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    subcommand, *options = shlex.split(line)[1:]
    with pytest.raises(SystemExit) as stopped:
        command(subcommand, *options, *(() if "--data.help" in options else ("--print_config",)))
    assert stopped.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", TOOL_COMMANDS)
def test_tool_commands_are_understood(line):
    _, name, *options = shlex.split(line)
    assert vars(tool_parser(name).parse_args(options))


def settings(tree, path=""):
    """Options of a printed config, as they are given on the command line."""
    for key, value in tree.items():
        here = path if key == "init_args" else f"{path}.{key}".strip(".")
        yield here
        yield from settings(value, here) if isinstance(value, dict) else ()


def test_settings_that_the_text_names_are_there(command, capsys):
    configs = [f"-c={ROOT}/configs/{name}.yaml" for name in ("paper", "sop", "sop_resnet50")]
    with pytest.raises(SystemExit):
        command("fit", *configs, "--data.transforms=ImageTransforms", "--print_config")
    known = set(settings(yaml.safe_load(capsys.readouterr().out)))
    domains = ("--data.source=A", "--data.target=B")
    for name, more in (
        ("segmentation/camvid", ()),
        ("segmentation/your_masks", ()),
        ("adaptation/your_domains", domains),
    ):
        config, given = ROOT / "configs" / f"{name}.yaml", ("--data.root=FOLDER", "--model.num_classes=5", *more)
        with pytest.raises(SystemExit):
            command("fit", "-c", config, *given, "--print_config")
        known |= set(settings(yaml.safe_load(capsys.readouterr().out)))
    text = "".join(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in PAGES)  # commands: above
    named = set(re.findall(r"--((?:model|data|trainer)\.[\w.]+)", text))
    assert len(named) > 15
    assert named - known == set()


@pytest.mark.parametrize(("module", "options"), BENCHMARKS)
def test_benchmarks_have_these_options(module, options, monkeypatch):
    def parsed(parser, args=None, namespace=None):  # noqa: ARG001  # argparse's signature
        known = set(parser._option_string_actions)
        assert {option for option in shlex.split(options) if option.startswith("--")} <= known
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()


def resolve(path):
    """The object at an import path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("page", "path"), DOCUMENTED, ids=lambda value: value)
def test_documented_names_exist_and_are_exported(page, path):
    assert path.startswith(f"lightning_recall.{page}."), "a name is documented on the page of its room"
    assert resolve(path) is not None
    module = importlib.import_module(path.rpartition(".")[0])
    if module.__name__.removeprefix("lightning_recall.") in ROOMS:
        assert path.rpartition(".")[2] in module.__all__


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_documented(room):
    """A name that a second room exports too is documented once."""
    module = importlib.import_module(f"lightning_recall.{room}")
    names = {path.rpartition(".")[2]: path for _, path in DOCUMENTED}
    assert set(module.__all__) <= set(names)
    for name in module.__all__:
        assert resolve(names[name]) is getattr(module, name)


def test_the_site_is_built_and_holds_every_documented_name(tmp_path):
    pytest.importorskip("material")  # an extra
    pytest.importorskip("mkdocstrings")  # an extra
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    for page, name in DOCUMENTED:
        assert f'id="{name}"' in (tmp_path / "reference" / f"{page}.html").read_text(), f"{name} is not on {page}.html"
    assert "&gt;&gt;&gt;" in (tmp_path / "reference" / "losses.html").read_text()  # examples, as code
    loaded = re.compile(
        r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*(?:src|href)="(?:https?:)?//'
    )
    assert not [path.name for path in tmp_path.rglob("*.html") if loaded.search(path.read_text())]  # no network


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES + REFERENCE if str(page.relative_to(ROOT / "docs")) not in text] == []


def test_the_package_structure_in_contributing_is_right():
    """Rooms are those of the package, and allowed imports those of test_architecture.py."""
    rules = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))
    files = [path for path in (ROOT / "lightning_recall").iterdir() if path.suffix == ".py" or path.is_dir()]
    rooms = {path.stem for path in files} - {"__init__", "__main__", "__pycache__"}
    table = re.findall(r"^\| `(\w+)` \| [^|]+\. \| ([^|]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {room for room, _ in table} == rooms
    assert len(table) == len(rooms)
    for room, cell in table:
        imports = set(re.findall(r"`(\w+)`", cell))
        imports |= rules["BOTTOM"] if "bottom tier" in cell else set()
        imports |= rooms - {"benchmarks"} if "everything" in cell else set()
        assert imports - {room} == rules["ALLOWED"][room] & rooms - {room}, room
    bottom = (ROOT / "CONTRIBUTING.md").read_text().split('"Bottom tier" means')[1].split("\n")[0]
    assert set(re.findall(r"`(\w+)`", bottom)) == rules["BOTTOM"]


def test_links_exist():
    for page in PAGES + REFERENCE:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
