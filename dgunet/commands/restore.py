"""dgunet restore: photographs and folders of them into a folder."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgunet.commands.arguments import MODEL_HELP, add_device, chosen_device, not_empty, path
from dgunet.jobs import FORMATS, UsageError, plan

if TYPE_CHECKING:
    from dgunet.network import DGUNet


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    restore = actions.add_parser(
        "restore",
        help="restore photos into a folder",
        description="Restore photos into a folder, with the same names and formats, alpha and metadata. Metadata "
        "that a format cannot hold is reported. A refused photo does not stop the others. Finished photos are kept: "
        "after an interruption or a full disk, run the same command with --skip-existing.",
        epilog="Exit status: 0 all restored or skipped, 1 some refused, 2 wrong usage, 130 interrupted.",
    )
    restore.add_argument(
        "photos",
        nargs="+",
        type=path,
        metavar="PHOTO",
        help="a photo, or a folder that is searched for photos with all subfolders",
    )
    restore.add_argument(
        "out",
        type=not_empty,
        metavar="OUT",
        help="folder to write to, created if it does not exist; or, for one photo, a file name",
    )
    restore.add_argument("--model", required=True, help=MODEL_HELP)
    restore.add_argument(
        "--tile",
        type=_tile,
        help="side of the tiles in pixels (default: as memory allows; photos of up to 1024x1024 pixels are one tile)",
    )
    restore.add_argument(
        "--statistics",
        choices=("whole", "local", "tile"),
        help="where the network takes the statistics of its features: of the whole photo, over windows (if the model "
        "names them), or of each tile, which is faster for large photos and not exact (default: local if the model "
        "names windows, else whole)",
    )
    restore.add_argument(
        "--stages", type=_count, metavar="K", help="stop after K stages: faster, and less restored (default: all)"
    )
    restore.add_argument(
        "--self-ensemble", action="store_true", help="average over 8 flips and rotations; takes 8 times as long"
    )
    restore.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is faster on GPUs and less exact (default: float32)",
    )
    restore.add_argument(
        "--fast",
        action="store_true",
        help="compute with OpenVINO on the CPU: the same but for rounding, in less time; not for statistics over "
        "windows, and for photos of more than 1024x1024 pixels only with --statistics tile; needs dgunet[fast]",
    )
    add_device(restore)
    restore.add_argument(
        "--format", choices=FORMATS, help="format to write (default: that of each photo; PNG for HEIC)"
    )
    restore.add_argument("--page", type=_count, help="which picture of files that hold several, from 1")
    existing = restore.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace photos that exist in OUT")
    existing.add_argument(
        "--skip-existing", action="store_true", help="skip photos that exist in OUT: continues after an interruption"
    )
    restore.add_argument(
        "--compare",
        action="store_true",
        help="also write NAME.compare.jpg: the photo on the left, the restored one on the right",
    )
    restore.add_argument(
        "--json", action="store_true", help="print one JSON object at the end on stdout, all else on stderr"
    )
    restore.set_defaults(action=_restore)


def _restore(arguments: argparse.Namespace) -> int:
    planned = plan(arguments.photos, arguments.out, arguments.format)
    from dgunet.batch import run

    existing = "replace" if arguments.overwrite else "skip" if arguments.skip_existing else "refuse"
    return run(
        planned,
        Path(arguments.out),
        partial(_load_restore, arguments),
        page=arguments.page,
        existing=existing,
        compare=arguments.compare,
        as_json=arguments.json,
    )


def _load_restore(arguments: argparse.Namespace) -> Callable[..., Any]:
    from dgunet.checkpoint import load_model
    from dgunet.inference import restore

    device = chosen_device(arguments.device)
    model: DGUNet = load_model(arguments.model).to(device)
    options = {name: getattr(arguments, name) for name in ("tile", "statistics", "self_ensemble", "precision")}
    options["num_stages"] = arguments.stages
    options["fast"] = _load_graph(arguments, model) if arguments.fast else None

    def restored(pixels: Any, show_tiles: Callable[[int, int], None]) -> Any:
        return restore(model, pixels, progress=show_tiles, **options)

    return restored


def _load_graph(arguments: argparse.Namespace, model: "DGUNet") -> Callable[..., Any] | None:
    """Return the graph of OpenVINO, and say which photos it does not restore; None: it restores none."""
    from dgunet.console import write_line

    if next(model.parameters()).device.type != "cpu":
        raise UsageError("--fast is for the CPU: add --device cpu, or leave it out")
    if model.local_statistics is not None and arguments.statistics in (None, "local"):
        write_line(
            "--fast is not for statistics over windows, as this model takes them; --statistics whole would be "
            "fast. Restored without it.",
            to_stderr=True,
        )
        return None
    from dgunet.fast import load_graph

    if arguments.statistics != "tile":
        write_line(
            "--fast: photos of more than one tile are restored without it; --statistics tile would be fast",
            to_stderr=True,
        )
    return load_graph(model, arguments.stages, arguments.precision)


def _tile(text: str) -> int:
    if not text.isdigit() or int(text) % 32 or int(text) < 192:
        raise argparse.ArgumentTypeError(f"{text}: must be a multiple of 32 and at least 192")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")
    return int(text)
