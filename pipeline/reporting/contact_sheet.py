"""Contact sheets: clean image, degraded image and difference side by side, with the sampled parameters."""

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
COLUMN_WIDTH, NAME_WIDTH, ITEMS_WIDTH = 210, 104, 330  # pixels; an image column is as wide as its heading
BACKGROUND, TEXT, FAINT_TEXT = (250, 250, 250), (20, 20, 20), (100, 100, 100)
DIFFERENCE_GAIN = 2.0
FONT = ImageFont.load_default(FONT_SIZE)  # has no Greek and no mathematical signs


class Note(NamedTuple):
    """A name and text items; lines are broken only between items."""

    name: str
    items: Sequence[str]


class Row(NamedTuple):
    """One pair, and the notes beside it."""

    clean: Float32[np.ndarray, "H W C"]
    degraded: Float32[np.ndarray, "H W C"]
    notes: Sequence[Note]


class Cell(NamedTuple):
    """One image and the name drawn below it."""

    image: Float32[np.ndarray, "H W C"]
    name: str


def sheet_of_pairs(
    rows: Sequence[Row], *, degraded_title: str = "degraded", notes_title: str = "sampled parameters"
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a row for each pair: clean, degraded, difference, PSNR and notes.

    Args:
        rows: pairs of images of any size.
        degraded_title: heading of the degraded images.
        notes_title: heading of the notes.
    """
    texts = [_lines([Note("PSNR", [f"{_psnr(row):.1f} dB"]), *row.notes]) for row in rows]
    heights = [max(row.clean.shape[0], LINE * len(text)) for row, text in zip(rows, texts, strict=True)]
    step = max(COLUMN_WIDTH, *(row.clean.shape[1] for row in rows)) + GAP
    left = 3 * step + 2 * GAP
    size = (left + NAME_WIDTH + ITEMS_WIDTH + GAP, sum(heights) + (2 + len(rows)) * GAP + LINE)
    headings = ("clean", degraded_title, f"{DIFFERENCE_GAIN:g} x difference; gray: zero", notes_title)
    page = Image.new("RGB", size, BACKGROUND)
    for place, heading in zip((GAP, GAP + step, GAP + 2 * step, left), headings, strict=True):
        draw_text(page, (place, GAP), heading, FAINT_TEXT)
    top = LINE + 2 * GAP
    for row, text, height in zip(rows, texts, heights, strict=True):
        difference = 0.5 + 0.5 * DIFFERENCE_GAIN * (row.degraded - row.clean)
        for column, image in enumerate((row.clean, row.degraded, difference)):
            page.paste(to_pillow(image), (GAP + column * step, top))
        for number, (name, items) in enumerate(text):
            draw_text(page, (left, top + number * LINE), name)
            draw_text(page, (left + NAME_WIDTH, top + number * LINE), items, FAINT_TEXT)
        top += height + GAP
    return np.asarray(page)


def sheet_of_kinds(cells: Sequence[Cell], columns: int) -> UInt8[np.ndarray, "H W 3"]:
    """Draw images of one size in a grid, each above its name."""
    height, width, _ = cells[0].image.shape
    step_y, step_x = height + FONT_SIZE + 2 * GAP, width + GAP
    page = Image.new("RGB", (GAP + columns * step_x, GAP + -(-len(cells) // columns) * step_y), BACKGROUND)
    for index, cell in enumerate(cells):
        top, left = GAP + index // columns * step_y, GAP + index % columns * step_x
        page.paste(to_pillow(cell.image), (left, top))
        draw_text(page, (left, top + height + 2), cell.name)
    return np.asarray(page)


def describe(record: Mapping[str, Any]) -> list[Note]:
    """Return the sampled parameters of a record of `degrade`, one note per step, without the seeds."""
    notes = []
    for step in record["steps"]:
        sampled = {name: value for name, value in step.items() if name not in ("kind", "seed")}
        notes.append(Note(step["kind"], [f"{name} {shorten(value)}" for name, value in sampled.items()]))
    return notes or [Note("none", ["image unchanged"])]


def shorten(value: Any) -> str:
    """Return a sampled value as short text."""
    if isinstance(value, list):
        return ", ".join(map(shorten, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _psnr(row: Row) -> float:
    return float(psnr(to_tensor(row.degraded), to_tensor(row.clean)))


def _lines(notes: Sequence[Note]) -> list[tuple[str, str]]:
    """Return name and text of each line: as many items as fit. Only the first line of a note has its name."""
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


def to_pillow(image: Float32[np.ndarray, "H W C"]) -> Image.Image:
    """Convert an image in [0, 1], gray or colour, to a Pillow image."""
    codes = quantise(np.ascontiguousarray(image, np.float32), np.uint8)
    return Image.fromarray(np.repeat(codes, 3, axis=2) if codes.shape[2] == 1 else codes)


def draw_text(page: Image.Image, place: tuple[int, int], text: str, colour: tuple[int, int, int] = TEXT) -> None:
    """Draw a line of text; `place` is (left, top)."""
    ImageDraw.Draw(page).text(place, text, colour, FONT)
