"""The floor plan, as rules: which room may import which, and how large a piece may grow.

A room is a folder or a file of the package, such as `losses` or `batch`. Each entry of `ALLOWED` lists the rooms that a
room may import, besides itself.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "lightning_recall"
FILES = sorted(PACKAGE.rglob("*.py"))
BOTTOM = {
    "batch",
    "checks",
    "tensors",
    "virtual_pairs",
    "random_state",
    "gather",
    "memory_allocation",
    "evaluation_mode",
    "constructor_arguments",
    "pil_preprocessing",
}  # plain torch, for every room
PLAIN = {
    *("losses", "mixup", "models", "samplers", "search", "metrics", "plots", "recompute"),
    *("embedding_sets", "comparison", "compression", "indexes", "sharing"),
}  # plain torch too
SHARED = {"optimization", "data", "callbacks", "cli"}  # with Lightning, for the wings too
RETRIEVAL = {"modules", "datamodules"}
WINGS = {"segmentation", "adaptation"}
PLAIN_IN_WINGS = (
    *("segmentation/losses", "segmentation/models", "segmentation/scores.py"),
    *(f"adaptation/{name}" for name in ("domain_mixup", "gradient_reversal", "losses", "models", "plots", "scores")),
)  # plain torch too
ALLOWED = {
    "_lightning": set(),
    **{room: BOTTOM - {room} for room in BOTTOM},
    **dict.fromkeys(PLAIN, BOTTOM),
    "metrics": BOTTOM | {"search"},
    "plots": BOTTOM | {"search"},
    "comparison": BOTTOM | {"search", "metrics", "plots", "embedding_sets"},
    "compression": BOTTOM | {"search", "metrics", "plots", "embedding_sets"},
    "indexes": BOTTOM | {"search", "plots", "embedding_sets"},
    "optimization": BOTTOM | {"_lightning"},
    "data": BOTTOM | {"_lightning"},
    "callbacks": BOTTOM | {"_lightning", "search", "metrics", "plots", "data", "embedding_sets", "sharing"},
    "cli": BOTTOM | {"_lightning", "callbacks"},
    "commands": BOTTOM | PLAIN | {"_lightning", "data", "callbacks", "modules"},
    "modules": BOTTOM | {"_lightning", "losses", "mixup", "models", "recompute", "optimization", "data", "sharing"},
    "datamodules": BOTTOM | {"_lightning", "samplers", "data"},
    **{wing: BOTTOM | {"_lightning", "recompute", "models"} | SHARED for wing in WINGS},
    "__main__": {"cli"},
    "__init__": BOTTOM | PLAIN | SHARED | RETRIEVAL,
    "benchmarks": BOTTOM | PLAIN | SHARED | RETRIEVAL | WINGS | {"_lightning", "commands"},
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
        if here in BOTTOM | PLAIN or str(path.relative_to(PACKAGE)).startswith(PLAIN_IN_WINGS):
            assert parts[:2] != ["lightning_recall", "_lightning"], f"{name} is Lightning, but {here} is plain torch"
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


ABOUT_ALL = {
    "test_architecture",
    "test_clusters",
    "test_configs",
    "test_devices",
    "test_distributed",
    "test_docs",
    "test_notebooks",
    "test_package",
    "test_plug_in",
    "test_readme",
    "test_resume",
    "test_security",
    "test_service",
    "test_torchrun",
    "test_workflow",
}
TESTED_THROUGH = {
    "_lightning.py": "test_lightning.py",
    "benchmarks/measure.py": "benchmarks/test_loss_memory.py",
    "benchmarks/published.py": "benchmarks/test_loss_speed.py",
    "embedding_sets/items.py": "embedding_sets/test_embedding_set.py",
    "embedding_sets/shards.py": "callbacks/test_embedding_writer.py",
    "callbacks/embedding_folder.py": "callbacks/test_embedding_writer.py",
    "callbacks/embedding_state.py": "callbacks/test_embedding_writer.py",
    "callbacks/evaluation_metrics.py": "callbacks/test_retrieval_evaluation.py",
    "callbacks/evaluation_listener.py": "callbacks/test_threshold_selection.py",
    "callbacks/tables.py": "callbacks/test_retrieval_evaluation.py",
    "cli/help.py": "test_cli.py",
    "compression/searches.py": "compression/test_protocol.py",
    "compression/variants.py": "compression/test_sizes.py",
    "commands/queries.py": "commands/test_search.py",
    "commands/saved_model.py": "commands/test_index.py",
    "commands/search_results.py": "commands/test_search.py",
    "data/messages.py": "data/test_tables.py",
    **{f"datamodules/{name}.py": "test_datamodules.py" for name in ("cars196", "cub", "in_shop", "inaturalist")},
    **{f"datamodules/{name}.py": "test_datamodules.py" for name in ("landmarks", "omniglot", "sop", "vehicle_id")},
    "datamodules/embedding.py": "datamodules/test_cached_features.py",
    "losses/anchors.py": "losses/test_uniloss.py",
    "losses/average_precision.py": "losses/test_ranking.py",
    "losses/gallery.py": "losses/test_ranking.py",
    "losses/part_losses.py": "losses/test_pairwise.py",
    "losses/parts.py": "losses/test_ranking.py",
    "losses/positives.py": "losses/test_ranking.py",
    "losses/sup_recall_at_k.py": "losses/test_ranking.py",
    "metrics/scores.py": "metrics/test_retrieval_scores.py",
    "modules/checks.py": "modules/test_retrieval.py",
    "modules/local_queries.py": "test_distributed.py",
    "optimization/gradients.py": "optimization/test_optimizer_settings.py",
    "optimization/schedules.py": "optimization/test_manual_optimization.py",
    "optimization/trainer_checks.py": "optimization/test_manual_optimization.py",
    "recompute/first_pass.py": "recompute/test_chunks.py",
    "recompute/pytrees.py": "recompute/test_chunks.py",
    **{
        f"samplers/{name}.py": "test_samplers.py"
        for name in ("checks", "class_balanced", "epochs", "pack_counts", "published", "spread", "super_classes")
    },
    **{f"search/{name}.py": "search/test_relevant_ranks.py" for name in ("count_ahead", "ranks", "same_label")},
    **{
        f"sharing/{name}.py": "modules/test_shared_module.py"
        for name in ("config", "model_card", "settings", "weights")
    },
    "search/best_match.py": "metrics/test_open_set.py",
    "search/operating_points.py": "metrics/test_verification.py",
    "search/result.py": "callbacks/test_evaluation_charts.py",
    "search/thresholds.py": "search/test_relevant_ranks.py",
}
"""source file without a test file of its own -> the test file that runs all of it, through what users call"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_source_file_has_its_test(path):
    source = path.relative_to(PACKAGE)
    own = TESTS / source.with_name(f"test_{source.name}")
    if source.name in ("__init__.py", "__main__.py"):
        return  # they only name what other files hold
    assert own.exists() != (str(source) in TESTED_THROUGH), f"{own} or an entry in TESTED_THROUGH, not both"
    assert own.exists() or (TESTS / TESTED_THROUGH[str(source)]).exists()


def test_a_tests_stem_is_its_files():
    for path in TESTS.rglob("test_*.py"):
        source = PACKAGE / path.relative_to(TESTS).with_name(path.name.removeprefix("test_"))
        exists = source.exists() or source.with_suffix("").is_dir()
        known = path.stem in ABOUT_ALL or str(path.relative_to(TESTS)) in TESTED_THROUGH.values()
        assert exists or known, f"{path} tests no file and no folder"
