"""The command line: dgunet restore, dgunet import, dgunet info.

Exit status: 0 all done, 1 something failed (one line on stderr says what), 2 wrong usage, 130 interrupted. Each action
imports what it needs, so that help and wrong arguments answer at once.
"""

import argparse
import hashlib
import math
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
    """Arguments that contradict each other or the files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.action(arguments)
    except KeyboardInterrupt:
        print("dgunet: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"dgunet: {_reason(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dgunet", description="Restore photographs with unfolding networks.")
    actions = parser.add_subparsers(required=True, metavar="COMMAND")

    restore = actions.add_parser(
        "restore",
        help="restore photos into a folder",
        description="Restore photos into a folder, under their names and in their formats, with alpha, colour profile "
        "and EXIF. A photo that fails is reported, and the others are done.",
    )
    restore.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTO", help="a file, or a folder of them (recursive)"
    )
    restore.add_argument("out", type=Path, metavar="OUT", help="the folder to write to; made if it is missing")
    restore.add_argument("--model", required=True, help=MODEL_HELP)
    restore.add_argument(
        "--tile", type=_tile, help="side of the tiles (default: 512 for photos above 1024x1024 pixels)"
    )
    restore.add_argument("--self-ensemble", action="store_true", help="average over flips and turns; 8 times the work")
    restore.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: faster on GPUs, less exact"
    )
    restore.add_argument("--device", help="as torch names it: cpu, cuda, cuda:1 (default: a GPU if there is one)")
    restore.add_argument("--overwrite", action="store_true", help="replace photos that are in OUT already")
    restore.set_defaults(action=_restore)

    importing = actions.add_parser(
        "import", help="turn a published checkpoint into a model folder", description="Never runs code from the file."
    )
    importing.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .pth file of the published code")
    importing.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="the model folder to make")
    importing.add_argument("--num-stages", type=int, help="number of stages, where the file does not tell (default: 7)")
    importing.add_argument("--blockwise", action="store_true", help="sensing: every 32x32 block is restored on its own")
    importing.add_argument("--task", help="what it was trained for, as derain; kept in config.json")
    importing.set_defaults(action=_import)

    info = actions.add_parser("info", help="show what a model is and where it comes from")
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
                raise ValueError(f"{target} is there already; --overwrite replaces it")
            if target.suffix.lower() not in SUFFIXES:
                raise ValueError(f"not the name of a photo; known are {', '.join(SUFFIXES)}")
            photo = read_photo(source)
            restored = restore(model, photo.pixels, progress=_show_tiles, **options)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_photo(target, replace(photo, pixels=restored))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: torch has no memory left
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
    """Which photo goes where: under its name, and for folders under its path inside the folder."""
    from dgunet.images import SUFFIXES

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: the last argument is the folder to write to, this is a file")
    targets: dict[Path, Path] = {}
    for photo in photos:
        sources, root = [photo], photo.parent
        if photo.is_dir():
            found = (path for path in photo.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            sources, root = sorted(path for path in found if out.resolve() not in path.resolve().parents), photo
            if not sources:
                raise UsageError(f"{photo}: no photos in this folder ({', '.join(SUFFIXES)})")
        for source in sources:
            target = out / source.relative_to(root)
            other = targets.setdefault(target, source)
            if other.resolve() != source.resolve():
                raise UsageError(f"{other} and {source} would both become {target}; restore them into two folders")
    originals = {source.resolve() for source in targets.values()}
    for target in targets:
        if target.resolve() in originals:
            raise UsageError(f"{target} is one of the photos and would be overwritten; choose another folder")
    return [(source, target) for target, source in targets.items()]


def _import(arguments: argparse.Namespace) -> int:
    if arguments.folder.exists():
        raise UsageError(f"{arguments.folder}: is there already; remove it or choose another name")
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
        raise argparse.ArgumentTypeError(f"{text}: give a multiple of 32, at least 192")
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


def _show_tiles(num_done: int, num_all: int) -> None:
    if num_all > 1 and sys.stderr.isatty():
        end = "\r" + " " * 30 + "\r" if num_done == num_all else ""
        print(f"\r  tile {num_done} of {num_all}", end=end, file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or ("memory" in str(error) and isinstance(error, RuntimeError)):
        return "not enough memory; try smaller tiles, as --tile 256"
    if isinstance(error, RuntimeError | AssertionError):  # torch adds pages
        return (str(error).splitlines() or [type(error).__name__])[0]
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
