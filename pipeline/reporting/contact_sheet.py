"""Contact sheets: clean, degraded and their difference side by side, with the numbers that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from dgunet.images import quantise
from dgunet.metrics import psnr
from dgunet.tensors import to_tensor

GAP, FONT_SIZE = 8, 13
LINE = FONT_SIZE + 3
COLUMN_WIDTH, NAME_WIDTH, ITEMS_WIDTH = 210, 104, 330  # that of images at least: the longest heading
PAPER, INK, FAINT_INK = (250, 250, 250), (20, 20, 20), (100, 100, 100)
DIFFERENCE_GAIN = 2.0
FONT = ImageFont.load_default(FONT_SIZE)  # has no Greek and no mathematical signs


class Note(NamedTuple):
    """A name and what is to be said of it; an item is not broken across lines."""

    name: str
    items: Sequence[str]


class Row(NamedTuple):
    """One pair to be shown and the notes that stand beside it."""

    clean: Float32[np.ndarray, "H W C"]
    degraded: Float32[np.ndarray, "H W C"]
    notes: Sequence[Note]


class Cell(NamedTuple):
    """One image to be shown and the name below it."""

    image: Float32[np.ndarray, "H W C"]
    name: str


def pair_sheet(
    rows: Sequence[Row], *, degraded_is: str = "degraded", notes_are: str = "drawn parameters"
) -> UInt8[np.ndarray, "H W 3"]:
    """Show pairs one below the other under headings: clean, degraded, difference; beside them PSNR and notes.

    A row is as high as its image or its notes, whichever is higher.
    """
    texts = [_lines([Note("PSNR", [f"{_psnr(row):.1f} dB"]), *row.notes]) for row in rows]
    heights = [max(row.clean.shape[0], LINE * len(text)) for row, text in zip(rows, texts, strict=True)]
    step = max(COLUMN_WIDTH, *(row.clean.shape[1] for row in rows)) + GAP
    left = 3 * step + 2 * GAP
    size = (left + NAME_WIDTH + ITEMS_WIDTH + GAP, sum(heights) + (2 + len(rows)) * GAP + LINE)
    headings = ("clean", degraded_is, f"difference, {DIFFERENCE_GAIN:g} times; gray is none", notes_are)
    page = Image.new("RGB", size, PAPER)
    for place, heading in zip((GAP, GAP + step, GAP + 2 * step, left), headings, strict=True):
        write(page, (place, GAP), heading, FAINT_INK)
    top = LINE + 2 * GAP
    for row, text, height in zip(rows, texts, heights, strict=True):
        difference = 0.5 + 0.5 * DIFFERENCE_GAIN * (row.degraded - row.clean)
        for column, image in enumerate((row.clean, row.degraded, difference)):
            page.paste(picture(image), (GAP + column * step, top))
        for number, (name, items) in enumerate(text):
            write(page, (left, top + number * LINE), name)
            write(page, (left + NAME_WIDTH, top + number * LINE), items, FAINT_INK)
        top += height + GAP
    return np.asarray(page)


def kind_sheet(cells: Sequence[Cell], columns: int) -> UInt8[np.ndarray, "H W 3"]:
    """Show images of one size in a grid, each above its name."""
    height, width, _ = cells[0].image.shape
    step_y, step_x = height + FONT_SIZE + 2 * GAP, width + GAP
    page = Image.new("RGB", (GAP + columns * step_x, GAP + -(-len(cells) // columns) * step_y), PAPER)
    for index, cell in enumerate(cells):
        top, left = GAP + index // columns * step_y, GAP + index % columns * step_x
        page.paste(picture(cell.image), (left, top))
        write(page, (left, top + height + 2), cell.name)
    return np.asarray(page)


def describe(record: Mapping[str, Any]) -> list[Note]:
    """What was drawn, a note for each step, without the seeds."""
    notes = []
    for step in record["steps"]:
        sampled = {name: value for name, value in step.items() if name not in ("kind", "seed")}
        notes.append(Note(step["kind"], [f"{name} {shorten(value)}" for name, value in sampled.items()]))
    return notes or [Note("nothing", ["the picture as it is"])]


def shorten(value: Any) -> str:
    """A drawn value as a person wants to read it."""
    if isinstance(value, list):
        return ", ".join(map(shorten, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _psnr(row: Row) -> float:
    return float(psnr(to_tensor(row.degraded), to_tensor(row.clean)))


def _lines(notes: Sequence[Note]) -> list[tuple[str, str]]:
    """Name and items of each line: as many items as fit, and the name on a note's first."""
    lines = []
    for name, items in notes:
        here, text = name, ""
        for item in items:
            longer = f"{text} · {item}" if text else item
            if text and FONT.getlength(longer) > ITEMS_WIDTH:
                lines.append((here, text))
                here, longer = "", item
            text = longer
        lines.append((here, text))
    return lines


def picture(image: Float32[np.ndarray, "H W C"]) -> Image.Image:
    """An image in [0, 1], gray or colour, for Pillow."""
    codes = quantise(np.ascontiguousarray(image, np.float32), np.uint8)
    return Image.fromarray(np.repeat(codes, 3, axis=2) if codes.shape[2] == 1 else codes)


def write(page: Image.Image, place: tuple[int, int], text: str, ink: tuple[int, int, int] = INK) -> None:
    """Write a line; place is (left, top)."""
    ImageDraw.Draw(page).text(place, text, ink, FONT)
