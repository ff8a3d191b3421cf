"""dgunet explain: a page that shows what every stage of a network does to a photograph."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dgunet.commands.arguments import MODEL_HELP, add_device, chosen_device, path
from dgunet.jobs import UsageError

if TYPE_CHECKING:
    import numpy as np


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    explain = actions.add_parser(
        "explain",
        help="show what every stage does to a photo",
        description="Write a self-contained HTML page: the estimate after each stage, the changes by its gradient step "
        "and its proximal mapping, the residual of the data term, the learned degradation applied to the "
        "estimate; with a clean reference the PSNR of each stage.",
    )
    explain.add_argument("photo", type=path, metavar="PHOTO")
    explain.add_argument("--model", required=True, help=MODEL_HELP)
    explain.add_argument("--clean", type=path, help="the same photo without degradation, of the same size")
    explain.add_argument("--out", type=path, help="page to write (default: PHOTO with the suffix .explain.html)")
    explain.add_argument(
        "--crop",
        type=_crop,
        metavar="X,Y,SIDE",
        help="the square to explain, in pixels from the top left (default: the whole photo up to "
        "1 megapixel, else 768x768 pixels in its middle)",
    )
    explain.add_argument("--page", type=int, help="which picture of a file that holds several, from 1")
    add_device(explain)
    explain.set_defaults(action=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from dgunet.checkpoint import load_model
    from dgunet.console import write_line
    from dgunet.explanation import explain
    from dgunet.explanation_page import render_explanation
    from dgunet.images import in_channels, read_photo, to_float

    photo: Path = arguments.photo
    out: Path = arguments.out or photo.with_suffix(".explain.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: give the name of a page, such as {out.with_suffix('.html')}")
    pixels = read_photo(photo, page=arguments.page).pixels
    clean = None if arguments.clean is None else read_photo(arguments.clean).pixels
    if clean is not None and clean.shape[:2] != pixels.shape[:2]:
        raise ValueError(f"{arguments.clean}: has {_size(clean)} pixels, {photo} has {_size(pixels)}")
    rows, columns, part = _part(pixels, arguments.crop, photo)
    model = load_model(arguments.model).to(chosen_device(arguments.device))
    images = [
        to_float(in_channels(array[rows, columns], model.config.image_channels))
        for array in (pixels, clean)
        if array is not None
    ]
    explanation = explain(model, *images)
    facts = [f"Model: {arguments.model}. {part}"]
    page = render_explanation(explanation, title=photo.name, facts=facts, clean=images[1] if len(images) > 1 else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, page)
    write_line(f"{out}: {len(explanation.stages)} stages")
    return 0


def _part(
    pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]]",
    crop: tuple[int, int, int] | None,
    photo: Path,
) -> tuple[slice, slice, str]:
    from dgunet.explanation_page import central

    height, width = pixels.shape[:2]
    if crop is None:
        rows, columns = central(height, width)
    else:
        left, top, side = crop
        if left >= width or top >= height:
            raise UsageError(f"--crop {left},{top},{side}: outside {photo}, which has {_size(pixels)} pixels")
        rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
    size = f"{columns.stop - columns.start}x{rows.stop - rows.start}"
    if size == _size(pixels):
        return rows, columns, f"The whole photo, {size} pixels."
    return rows, columns, f"The part from ({columns.start}, {rows.start}) of {size} pixels, of {_size(pixels)}."


def _size(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]]") -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.stem[:100]}.partial")
    try:
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _crop(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts) or int(parts[2]) < 1:
        raise argparse.ArgumentTypeError(f"{text}: write X,Y,SIDE, such as 200,100,512")
    return int(parts[0]), int(parts[1]), int(parts[2])
