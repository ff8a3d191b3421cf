"""Arguments that several commands take."""

import argparse
from pathlib import Path
from typing import Any

from dgunet.console import explain
from dgunet.hub import FORMS
from dgunet.jobs import FORMATS, UsageError

MODEL_HELP = f"the model: {FORMS}"


def add_restoring(parser: argparse.ArgumentParser) -> None:
    """Declare the model and what decides how it restores a photo."""
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument(
        "--tile",
        type=_tile,
        help="side of the tiles in pixels (default: photos of up to 1024x1024 pixels are one tile, larger ones are cut "
        "into tiles that take about 512 MB, or of 512 pixels with --statistics tile)",
    )
    parser.add_argument(
        "--statistics",
        choices=("whole", "local", "tile"),
        help="where the network takes the statistics of its features: of the whole photo, over windows (if the model "
        "names them), or of each tile, which is faster for large photos and not exact (default: local if the model "
        "names windows, else whole)",
    )
    parser.add_argument(
        "--stages", type=count, metavar="K", help="stop after K stages: faster, and less restored (default: all)"
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="average over 8 flips and rotations; takes 8 times as long"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is faster on GPUs and less exact (default: float32)",
    )
    parser.add_argument("--format", choices=FORMATS, help="format to write (default: that of each photo; PNG for HEIC)")
    parser.add_argument("--page", type=count, help="which picture of files that hold several, from 1")


def restore_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_restoring` declares, as arguments of `dgunet.restore`."""
    options = {name: getattr(arguments, name) for name in ("tile", "statistics", "self_ensemble", "precision")}
    return {**options, "num_stages": arguments.stages}


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare --device."""
    parser.add_argument(
        "--device",
        default="auto",
        help="torch device: auto, cpu, cuda, cuda:1 (default: auto, a CUDA GPU if there is one)",
    )


def chosen_device(name: str) -> str:
    """Return the device to use. Raises UsageError if it does not exist."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {explain(error)}") from error
    return name


def not_empty(text: str) -> str:
    """Argument type that refuses "", the value of an unset variable of a shell."""
    if not text:  # Path("") is the current directory
        raise argparse.ArgumentTypeError("an empty name")
    return text


def path(text: str) -> Path:
    """Argument type that refuses an empty path."""
    return Path(not_empty(text))


def _tile(text: str) -> int:
    if not text.isdigit() or int(text) % 32 or int(text) < 192:
        raise argparse.ArgumentTypeError(f"{text}: must be a multiple of 32 and at least 192")
    return int(text)


def count(text: str) -> int:
    """A type of argparse: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")
    return int(text)
