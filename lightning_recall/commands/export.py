"""`lightning-recall export`: a trained model as an ONNX, `torch.export` or OpenVINO file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_recall.commands.index import TRUST

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_recall.models import ExportReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint (.ckpt), or folder of share or save_pretrained")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="new file: model.onnx (ONNX), model.pt2 (torch.export) or model.xml (OpenVINO)",
    )
    parser.add_argument("--trust", metavar="CLASS_OR_PACKAGE", nargs="+", default=(), help=TRUST)
    parser.add_argument("--fp16", action="store_true", help="store float16 instead of float32 weights")


def run(arguments: argparse.Namespace) -> None:
    """Exports, and prints a table that compares the file with PyTorch.

    Raises:
        ValueError: for wrong arguments, and if the file does not compute what PyTorch computes.
    """
    from rich import get_console

    from lightning_recall.checks import first_line
    from lightning_recall.commands.saved_model import load_model
    from lightning_recall.modules import export_module
    from lightning_recall.modules.export import check_new_file

    check_new_file(arguments.to)
    module = load_model(Path(arguments.model).expanduser(), arguments.trust)
    try:
        report = export_module(module, arguments.to, arguments.fp16)
    except RuntimeError as error:  # different embeddings, an old torch, or a network that cannot be exported
        raise ValueError(f"{arguments.model} was not exported: {first_line(error)}.") from error
    get_console().print(report_table(report))
    if module.test_time_augmentation is not None:
        get_console().print("The file embeds without the module's test_time_augmentation.")


def report_table(report: "ExportReport") -> "Table":
    """One row: the file, and its cosines to PyTorch."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "precision", title="Parity with PyTorch")
    for name in ("MB", "cosine, batch of 1", "cosine, batch of 7", "cosine between images"):
        table.add_column(name, justify="right", max_width=14)
    cosines = (f"{value:.7f}" for value in (report.cosine_1, report.cosine_7))
    size = f"{report.num_bytes / 1e6:.1f}"
    table.add_row(escape(report.path.name), report.precision, size, *cosines, f"{report.between_images:.2f}")
    return table
