"""dgunet film: a film, frame by frame."""

import argparse
from pathlib import Path
from typing import Any

from dgunet.commands.arguments import MODEL_HELP, add_device, chosen_device, path
from dgunet.jobs import UsageError


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    film = actions.add_parser(
        "film",
        help="restore a film frame by frame",
        description="Restore a film frame by frame; sound and subtitles are copied. Writes H.264 (.mp4, .mov), or FFV1 "
        "without loss (.mkv). Each frame is restored alone, so that a strong restoration may flicker. Needs "
        "dgunet[video].",
    )
    film.add_argument("film", type=path, metavar="FILM")
    film.add_argument("out", type=path, metavar="OUT", help="file to write: .mp4, .mov or .mkv")
    film.add_argument("--model", required=True, help=MODEL_HELP)
    film.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    add_device(film)
    film.set_defaults(action=_film)


def _film(arguments: argparse.Namespace) -> int:
    from dgunet.video import SUFFIXES, WRITABLE

    source, out = arguments.film, arguments.out
    if out.suffix.lower() not in WRITABLE:
        raise UsageError(f"{out}: give a name that ends in {', '.join(WRITABLE)}")
    if not source.is_file():
        raise UsageError(f"{source}: there is no such file")
    if source.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{source}: not a supported film; give one of {', '.join(SUFFIXES)}")
    if out.exists() and (out.samefile(source) or not arguments.overwrite):
        raise UsageError(f"{out}: exists; --overwrite replaces it, unless it is the film itself")
    return _restore(arguments, source, out)


def _restore(arguments: argparse.Namespace, source: Path, out: Path) -> int:
    from dgunet.checkpoint import load_model
    from dgunet.console import ProgressLine, printable, write_line
    from dgunet.inference import restore
    from dgunet.video import restore_film

    model = load_model(arguments.model).to(chosen_device(arguments.device))
    progress = ProgressLine(1)

    def frame(pixels: Any) -> Any:
        return restore(model, pixels)

    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        num_frames = restore_film(source, out, frame, progress.show_tiles)
    finally:
        progress.clear()
    write_line(f"{printable(out)}  {num_frames:,} frames")
    return 0
