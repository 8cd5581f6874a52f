"""`lightning-recall export`: a trained model as an ONNX, `torch.export` or OpenVINO file."""

import argparse
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_recall.models import ExportReport
    from lightning_recall.modules import RetrievalModule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("model", help="checkpoint of a training (.ckpt), or folder that save_pretrained has written")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="new file: model.onnx (ONNX), model.pt2 (torch.export) or model.xml (OpenVINO)",
    )
    parser.add_argument("--fp16", action="store_true", help="store float16 instead of float32 weights")


def run(arguments: argparse.Namespace) -> None:
    """Exports, and prints a table that compares the file with PyTorch.

    Raises:
        ValueError: for wrong arguments, and if the file does not compute what PyTorch computes.
    """
    from rich import get_console

    from lightning_recall.checks import first_line
    from lightning_recall.modules import export_module
    from lightning_recall.modules.export import check_new_file

    check_new_file(arguments.to)
    module = load(arguments.model)
    try:
        report = export_module(module, arguments.to, arguments.fp16)
    except RuntimeError as error:  # different embeddings, an old torch, or a network that cannot be exported
        raise ValueError(f"{arguments.model} was not exported: {first_line(error)}.") from error
    get_console().print(report_table(report))
    if module.test_time_augmentation is not None:
        get_console().print("The file embeds without the module's test_time_augmentation.")


def load(model: str) -> "RetrievalModule":
    """The module of a checkpoint or of a folder of `save_pretrained`, on the CPU.

    Raises:
        ValueError: if it is neither, or its module cannot be rebuilt from its settings.
    """
    from lightning_recall.checks import first_line
    from lightning_recall.modules import RetrievalModule

    if Path(model).is_dir():
        return RetrievalModule.from_pretrained(model)
    try:
        return RetrievalModule.load_from_checkpoint(model, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, KeyError, TypeError, RuntimeError) as error:  # what torch and Lightning raise
        raise ValueError(
            f"{model} is not a checkpoint that can be loaded ({first_line(error)}): load the module in "
            "Python, and call lightning_recall.modules.export_module."
        ) from error


def report_table(report: "ExportReport") -> "Table":
    """One row: the file, and its cosines to PyTorch."""
    from rich.table import Table

    table = Table(
        "file", "precision", "MB", "cosine at 1", "cosine at 7", "between images", title="Parity with PyTorch"
    )
    cosines = (f"{value:.7f}" for value in (report.cosine_1, report.cosine_7))
    size = f"{report.num_bytes / 1e6:.1f}"
    table.add_row(report.path.name, report.precision, size, *cosines, f"{report.between_images:.2f}")
    return table
