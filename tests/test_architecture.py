"""The floor plan, as rules: which room may import which, and how large a piece may grow.

A room is a folder or a file of the package, such as `losses` or `batch`. Each entry of `ALLOWED` lists the rooms that a
room may import, besides itself.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_recall"
FILES = sorted(PACKAGE.rglob("*.py"))
BOTTOM = {"batch", "checks", "tensors", "virtual_pairs", "random_state", "gather"}  # plain torch, for every room
PLAIN = {"losses", "mixup", "models", "samplers", "search", "metrics", "plots", "recompute"}  # plain torch too
SHARED = {"optimization", "data", "callbacks", "cli"}  # with Lightning, for the wings too
RETRIEVAL = {"modules", "datamodules"}
WINGS = {"segmentation", "adaptation"}
ALLOWED = {
    "_lightning": set(),
    **{room: BOTTOM - {room} for room in BOTTOM},
    **dict.fromkeys(PLAIN, BOTTOM),
    "metrics": BOTTOM | {"search"},
    "plots": BOTTOM | {"search"},
    "optimization": BOTTOM | {"_lightning"},
    "data": BOTTOM | {"_lightning"},
    "callbacks": BOTTOM | {"_lightning", "search", "metrics", "plots", "data"},
    "cli": BOTTOM | {"_lightning", "callbacks"},
    "modules": BOTTOM | {"_lightning", "losses", "mixup", "models", "recompute", "optimization"},
    "datamodules": BOTTOM | {"_lightning", "samplers", "data"},
    **{wing: BOTTOM | {"_lightning", "recompute", "models"} | SHARED for wing in WINGS},
    "__main__": {"cli"},
    "__init__": BOTTOM | PLAIN | SHARED | RETRIEVAL,
    "benchmarks": BOTTOM | PLAIN | SHARED | RETRIEVAL | WINGS | {"_lightning"},
}
FORBIDDEN = {"pytorch_lightning", "lightning", "lightning_fabric"}  # only _lightning.py names them
MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS = 300, 40, 10  # lines, lines without docstring, arguments without self
MAX_DEPTH = 3  # RecallAtKLoss, RankLoss, RetrievalLoss: a class, a family, what all have in common


def room(path):
    """losses/circle.py -> losses, mixup.py -> mixup."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their whole path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_floor_plan(path):
    here = room(path)
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "lightning_recall":
            assert parts[1] == here or parts[1] in ALLOWED[here], f"{here} must not import {name}"
        assert parts[0] not in FORBIDDEN or here == "_lightning", "import Lightning's names from _lightning"
        if here in BOTTOM | PLAIN:
            assert parts[0] not in {"jsonargparse", "rich"}, f"{here} is plain torch"


def test_every_room_has_its_rule():
    assert {room(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pieces_stay_small(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= MAX_FUNCTION, f"{node.name} has {lines} lines"
            arguments = [*node.args.args, *node.args.kwonlyargs]
            assert len([a for a in arguments if a.arg != "self"]) <= MAX_ARGUMENTS, f"{node.name} is two things"


def test_a_class_has_at_most_two_of_ours_above_it():
    bases = {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }

    def depth(name):
        return 1 + max(map(depth, bases[name]), default=0) if name in bases else 0

    assert {name: depth(name) for name in bases if depth(name) > MAX_DEPTH} == {}


def test_a_tests_stem_is_its_files():
    tests = Path(__file__).parent
    about_all = {
        "test_architecture",
        "test_configs",
        "test_distributed",
        "test_resume",
        "test_plug_in",
        "test_package",
        "test_readme",
        "test_notebooks",
        "test_docs",
        "test_devices",
        "test_lightning",
        "test_workflow",
    }
    for path in tests.rglob("test_*.py"):
        source = PACKAGE / path.relative_to(tests).with_name(path.name.removeprefix("test_"))
        exists = source.exists() or source.with_suffix("").is_dir()
        assert path.stem in about_all or exists, f"{path} tests no file and no folder"
