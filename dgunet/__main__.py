"""The command line: dgunet restore, dgunet import, dgunet info.

Exit status: 0 success, 1 failure (stderr says why; of restore: some photos were refused), 2 wrong usage, 130
interrupted, 141 nobody reads the output. Each action imports what it needs, so that help and wrong arguments answer
without importing torch.
"""

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgunet.console import BROKEN_PIPE_STATUS, drop, explain, printable, show_all_names, write_line
from dgunet.jobs import FORMATS, UsageError, plan

if TYPE_CHECKING:
    from dgunet.network import DGUNet
MODEL_HELP = "a model folder, or a registered model: models:/NAME@ALIAS or models:/NAME/VERSION"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    show_all_names()
    try:
        try:
            return _run(argv)
        finally:  # an error of writing is reported here, not by the interpreter's shutdown
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                drop(stream)
        return BROKEN_PIPE_STATUS
    except OSError as error:
        drop(sys.stdout)
        write_line(f"dgunet: the output cannot be written: {explain(error)}", to_stderr=True)
        return 1


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    _let_threads_sleep()
    try:
        status: int = arguments.action(arguments)
    except KeyboardInterrupt:
        write_line("dgunet: interrupted", to_stderr=True)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        write_line(f"dgunet: {_lines_printable(error)}", to_stderr=True)
        return 2 if isinstance(error, UsageError) else 1
    return status


def _lines_printable(error: BaseException) -> str:
    return "\n".join(map(printable, explain(error).splitlines()))


def _let_threads_sleep() -> None:
    """Have OpenMP threads sleep while they wait, unless the user has set otherwise; read when torch is loaded.

    They spin by default: beside other processes, for the most part while the thread that they wait for does not run.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dgunet", description="Restore photographs with deep unfolding networks.")
    actions = parser.add_subparsers(required=True, metavar="COMMAND")

    restore = actions.add_parser(
        "restore",
        help="restore photos into a folder",
        description="Restore photos into a folder, with the same names and formats, alpha and metadata. What a format "
        "cannot hold is named. A photo that is refused does not stop the others. What is done stays: after an "
        "interruption or a full disk, run the same command with --skip-existing.",
        epilog="Exit status: 0 all restored or skipped, 1 some refused, 2 wrong usage, 130 interrupted.",
    )
    restore.add_argument(
        "photos",
        nargs="+",
        type=_path,
        metavar="PHOTO",
        help="a photo, or a folder that is searched for photos with all subfolders",
    )
    restore.add_argument(
        "out",
        type=_text,
        metavar="OUT",
        help="folder to write to, created if it does not exist; or, for one photo, a file name",
    )
    restore.add_argument("--model", required=True, help=MODEL_HELP)
    restore.add_argument(
        "--tile",
        type=_tile,
        help="side of the tiles in pixels (default: 512 for photos of more than 1024x1024 pixels, else no tiles)",
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
    restore.add_argument("--device", help="torch device: cpu, cuda, cuda:1 (default: a GPU if there is one)")
    restore.add_argument(
        "--format", choices=FORMATS, help="format to write (default: that of each photo; PNG for HEIC)"
    )
    restore.add_argument("--page", type=_page, help="which picture of files that hold several, from 1")
    existing = restore.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace photos that exist in OUT")
    existing.add_argument(
        "--skip-existing", action="store_true", help="pass over photos that exist in OUT: goes on after an interruption"
    )
    restore.add_argument(
        "--json", action="store_true", help="print one JSON object at the end on stdout, all else on stderr"
    )
    restore.set_defaults(action=_restore)

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

    info = actions.add_parser("info", help="show sizes, task and provenance of a model")
    info.add_argument("model", help=MODEL_HELP)
    info.set_defaults(action=_info)
    return parser


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
        as_json=arguments.json,
    )


def _load_restore(arguments: argparse.Namespace) -> Callable[..., Any]:
    from dgunet.checkpoint import load_model
    from dgunet.inference import restore

    device = _device(arguments.device)
    model: DGUNet = load_model(arguments.model).to(device)
    options = {name: getattr(arguments, name) for name in ("tile", "self_ensemble", "precision")}

    def restored(pixels: Any, show_tiles: Callable[[int, int], None]) -> Any:
        return restore(model, pixels, progress=show_tiles, **options)

    return restored


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
    return _show_card(arguments.folder)


def _info(arguments: argparse.Namespace) -> int:
    from dgunet.hub import PREFIX, pull

    return _show_card(pull(arguments.model) if arguments.model.startswith(PREFIX) else Path(arguments.model))


def _show_card(folder: Path) -> int:
    from safetensors import SafetensorError, safe_open

    from dgunet.checkpoint import WEIGHTS_FILE, read_card

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


def _tile(text: str) -> int:
    if not text.isdigit() or int(text) % 32 or int(text) < 192:
        raise argparse.ArgumentTypeError(f"{text}: must be a multiple of 32 and at least 192")
    return int(text)


def _text(text: str) -> str:
    if not text:  # as an unset variable of a shell gives it; Path would take it for the working directory
        raise argparse.ArgumentTypeError("an empty name")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _page(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")
    return int(text)


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {explain(error)}") from error
    return name


if __name__ == "__main__":
    sys.exit(main())
