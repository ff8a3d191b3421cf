"""The command line: dgunet restore, dgunet import, dgunet info.

Exit status: 0 success, 1 failure (one line on stderr says why), 2 wrong usage, 130 interrupted. Each action imports
what it needs, so that help and wrong arguments answer without importing torch.
"""

import argparse
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgunet.network import DGUNet
MODEL_HELP = "a model folder, or a registered model: models:/NAME@ALIAS or models:/NAME/VERSION"


class UsageError(ValueError):
    """The arguments contradict each other or the existing files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    arguments = _parser().parse_args(argv)
    _let_threads_sleep()
    try:
        status: int = arguments.action(arguments)
    except KeyboardInterrupt:
        print("dgunet: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"dgunet: {_reason(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return status


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
        description="Restore photos into a folder, with the same names and formats, and with alpha, colour profile and "
        "EXIF. If a photo fails, the command reports it and restores the others.",
    )
    restore.add_argument(
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTO",
        help="a photo, or a folder that is searched for photos with all subfolders",
    )
    restore.add_argument("out", type=Path, metavar="OUT", help="folder to write to; created if it does not exist")
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
    restore.add_argument("--overwrite", action="store_true", help="replace photos that already exist in OUT")
    restore.set_defaults(action=_restore)

    importing = actions.add_parser(
        "import",
        help="convert a published checkpoint to a model folder",
        description="Convert a published checkpoint to a model folder. Code in the file is never run.",
    )
    importing.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth file of the published code")
    importing.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="model folder to create")
    importing.add_argument(
        "--num-stages", type=int, help="number of stages of a network with shared stages (default: 7)"
    )
    importing.add_argument(
        "--blockwise", action="store_true", help="compressive sensing: restore every 32x32 block separately"
    )
    importing.add_argument("--task", help="task of the network, such as derain; written to config.json")
    importing.set_defaults(action=_import)

    info = actions.add_parser("info", help="show sizes, task and provenance of a model")
    info.add_argument("model", help=MODEL_HELP)
    info.set_defaults(action=_info)
    return parser


def _restore(arguments: argparse.Namespace) -> int:
    jobs = _jobs(arguments.photos, arguments.out)
    from dgunet.checkpoint import load_model
    from dgunet.images import SUFFIXES, read_photo, write_photo
    from dgunet.inference import restore

    device = _device(arguments.device)
    model: DGUNet = load_model(arguments.model).to(device)
    options = {name: getattr(arguments, name) for name in ("tile", "self_ensemble", "precision")}
    num_failed = 0
    for number, (source, target) in enumerate(jobs, start=1):
        label = f"[{number}/{len(jobs)}]"
        started = time.perf_counter()
        try:
            if target.exists() and not arguments.overwrite:
                raise ValueError(f"{target} exists; replace it with --overwrite")
            if target.suffix.lower() not in SUFFIXES:
                raise ValueError(f"unknown suffix; photos end in {', '.join(SUFFIXES)}")
            photo = read_photo(source)
            restored = restore(model, photo.pixels, progress=_show_progress, **options)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_photo(target, replace(photo, pixels=restored))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: torch is out of memory
            num_failed += 1
            print(
                f"{label} {source}: failed: {_reason(error).removeprefix(f'{source}: ')}", file=sys.stderr, flush=True
            )
        else:
            height, width = restored.shape[:2]
            print(f"{label} {target}  {width}x{height}  {time.perf_counter() - started:.1f} s", flush=True)
    if num_failed:
        print(f"{num_failed} of {len(jobs)} photos failed", file=sys.stderr)
    return 1 if num_failed else 0


def _jobs(photos: Iterable[Path], out: Path) -> list[tuple[Path, Path]]:
    """Return (photo, target) pairs; the target has the name of the photo, or its path inside a given folder."""
    from dgunet.images import SUFFIXES

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: the last argument must be a folder to write to, but is a file")
    targets: dict[Path, Path] = {}
    for photo in photos:
        sources, root = [photo], photo.parent
        if photo.is_dir():
            found = (path for path in photo.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            sources, root = sorted(path for path in found if out.resolve() not in path.resolve().parents), photo
            if not sources:
                raise UsageError(f"{photo}: no photos in this folder; photos end in {', '.join(SUFFIXES)}")
        for source in sources:
            target = out / source.relative_to(root)
            other = targets.setdefault(target, source)
            if other.resolve() != source.resolve():
                raise UsageError(
                    f"{other} and {source} would both be written to {target}; restore them into two folders"
                )
    originals = {source.resolve() for source in targets.values()}
    for target in targets:
        if target.resolve() in originals:
            raise UsageError(f"{target} is one of the photos and would be overwritten; choose another output folder")
    return [(source, target) for target, source in targets.items()]


def _import(arguments: argparse.Namespace) -> int:
    if arguments.folder.exists():
        raise UsageError(f"{arguments.folder}: exists; remove it or choose another name")
    from dgunet.checkpoint import save_model
    from dgunet.published import load

    network = load(arguments.checkpoint, num_stages=arguments.num_stages, full_image=not arguments.blockwise)
    origin = {
        "checkpoint": arguments.checkpoint.name,
        "sha256": hashlib.sha256(arguments.checkpoint.read_bytes()).hexdigest(),
    }
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


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {_reason(error)}") from error
    return name


def _show_progress(num_done: int, num_all: int) -> None:
    if num_all > 1 and sys.stderr.isatty():
        end = "\r" + " " * 30 + "\r" if num_done == num_all else ""
        print(f"\r  tile {num_done} of {num_all}", end=end, file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or ("memory" in str(error) and isinstance(error, RuntimeError)):
        return "not enough memory; try smaller tiles, such as --tile 256"
    if isinstance(error, RuntimeError | AssertionError):  # the first line, as torch adds a stack trace
        return (str(error).splitlines() or [type(error).__name__])[0]
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
