"""dgunet info: sizes, task and provenance of a model."""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dgunet.commands.arguments import MODEL_HELP


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    info = actions.add_parser("info", help="show sizes, task and provenance of a model")
    info.add_argument("model", help=MODEL_HELP)
    info.set_defaults(action=_info)


def _info(arguments: argparse.Namespace) -> int:
    from dgunet.hub import model_folder

    return show_card(model_folder(arguments.model))


def show_card(folder: Path) -> int:
    """Print the content of config.json and the number of parameters; returns the exit status 0."""
    from safetensors import SafetensorError, safe_open

    from dgunet.checkpoint import read_card
    from dgunet.config import WEIGHTS_FILE

    card = read_card(folder)
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="numpy") as weights:
            num_parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE}: the weights cannot be read ({error})") from error
    print("\n".join(_lines({"folder": str(folder), "parameters": f"{num_parameters:,}", **card})))
    return 0


def _lines(value: dict[str, Any], indent: str = "") -> Iterable[str]:
    for name, entry in value.items():
        if isinstance(entry, dict):
            yield f"{indent}{name}:"
            yield from _lines(entry, indent + "  ")
        else:
            yield f"{indent}{name}: {'-' if entry is None else entry}"
