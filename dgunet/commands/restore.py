"""dgunet restore: photographs and folders of them into a folder."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgunet.commands.arguments import add_device, add_restoring, chosen_device, not_empty, path, restore_options
from dgunet.jobs import UsageError, plan

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
        epilog="Exit status: 0 all restored or skipped, 1 some refused or an error, 2 wrong usage, 130 interrupted by "
        "Ctrl-C, 143 by SIGTERM.",
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
    add_restoring(restore)
    restore.add_argument(
        "--fast",
        action="store_true",
        help="compute with OpenVINO on the CPU: the same result up to rounding, in less time; not for statistics over "
        "windows, and for photos that are cut into tiles only with --statistics tile; needs dgunet[fast]",
    )
    add_device(restore)
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
    options = restore_options(arguments)
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
