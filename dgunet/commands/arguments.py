"""Arguments that several commands take."""

import argparse
from pathlib import Path

from dgunet.console import explain
from dgunet.hub import FORMS
from dgunet.jobs import UsageError

MODEL_HELP = f"the model: {FORMS}"


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
