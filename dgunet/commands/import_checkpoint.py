"""dgunet import: a published checkpoint into a model folder."""

import argparse
import hashlib
from pathlib import Path

from dgunet.commands.info import show_card
from dgunet.jobs import UsageError


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    importing = actions.add_parser(
        "import",
        help="convert a published checkpoint to a model folder",
        description="Convert a published checkpoint to a model folder. Code in the file is never run.",
    )
    importing.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="file of the published code: .pth, or .safetensors"
    )
    importing.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="model folder to create")
    importing.add_argument(
        "--num-stages", type=int, help="number of stages of a network with shared stages (default: 7)"
    )
    importing.add_argument(
        "--blockwise", action="store_true", help="compressive sensing: restore every 32x32 block separately"
    )
    importing.add_argument("--key", help="which weights, if the file holds several sets, such as params_ema")
    importing.add_argument("--task", help="task of the network, such as derain; written to config.json")
    importing.set_defaults(action=_import)


def _import(arguments: argparse.Namespace) -> int:
    if arguments.folder.exists():
        raise UsageError(f"{arguments.folder}: exists; remove it or choose another name")
    from dgunet.checkpoint import save_model
    from dgunet.published import load

    network = load(
        arguments.checkpoint, num_stages=arguments.num_stages, full_image=not arguments.blockwise, key=arguments.key
    )
    with arguments.checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"checkpoint": arguments.checkpoint.name, "sha256": digest}
    origin |= {"key": arguments.key} if arguments.key else {}
    save_model(network, arguments.folder, {"task": arguments.task, "provenance": {"imported": origin}})
    return show_card(arguments.folder)
