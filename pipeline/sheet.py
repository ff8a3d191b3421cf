"""Contact sheets: clean, degraded and their difference side by side, with the numbers that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from dgunet.images import quantise

GAP, TEXT_WIDTH, FONT_SIZE = 8, 330, 13
PAPER, INK = (250, 250, 250), (20, 20, 20)
DIFFERENCE_GAIN = 2.0


class Row(NamedTuple):
    """One pair to be shown and the lines that stand beside it."""

    clean: Float32[np.ndarray, "H W C"]
    degraded: Float32[np.ndarray, "H W C"]
    lines: Sequence[str]


class Cell(NamedTuple):
    """One image to be shown and the name below it."""

    image: Float32[np.ndarray, "H W C"]
    name: str


def pair_sheet(rows: Sequence[Row]) -> UInt8[np.ndarray, "H W 3"]:
    """Show pairs one below the other: clean, degraded, difference (gray is none, twice as strong as it is), text."""
    height = sum(row.clean.shape[0] + GAP for row in rows) + GAP
    width = max(row.clean.shape[1] for row in rows)
    page = Image.new("RGB", (3 * (width + GAP) + TEXT_WIDTH + GAP, height), PAPER)
    top = GAP
    for row in rows:
        difference = 0.5 + 0.5 * DIFFERENCE_GAIN * (row.degraded - row.clean)
        for column, image in enumerate((row.clean, row.degraded, difference)):
            page.paste(picture(image), (GAP + column * (width + GAP), top))
        write(page, (GAP + 3 * (width + GAP), top), row.lines)
        top += row.clean.shape[0] + GAP
    return np.asarray(page)


def kind_sheet(cells: Sequence[Cell], columns: int) -> UInt8[np.ndarray, "H W 3"]:
    """Show images of one size in a grid, each above its name."""
    height, width, _ = cells[0].image.shape
    step_y, step_x = height + FONT_SIZE + 2 * GAP, width + GAP
    page = Image.new("RGB", (GAP + columns * step_x, GAP + -(-len(cells) // columns) * step_y), PAPER)
    for index, cell in enumerate(cells):
        top, left = GAP + index // columns * step_y, GAP + index % columns * step_x
        page.paste(picture(cell.image), (left, top))
        write(page, (left, top + height + 2), [cell.name])
    return np.asarray(page)


def describe(record: Mapping[str, Any]) -> list[str]:
    """What was drawn, one line per number, without the seeds."""
    lines = []
    for step in record["steps"]:
        lines.append(step["kind"])
        lines += [f"    {name}  {shorten(value)}" for name, value in step.items() if name not in ("kind", "seed")]
    return lines or ["none"]


def shorten(value: Any) -> str:
    """A drawn value as a person wants to read it."""
    if isinstance(value, list):
        return ", ".join(map(shorten, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def picture(image: Float32[np.ndarray, "H W C"]) -> Image.Image:
    """An image in [0, 1], gray or colour, for Pillow."""
    codes = quantise(np.ascontiguousarray(image, np.float32), np.uint8)
    return Image.fromarray(np.repeat(codes, 3, axis=2) if codes.shape[2] == 1 else codes)


def write(page: Image.Image, place: tuple[int, int], lines: Sequence[str]) -> None:
    """Write lines below each other; place is (left, top)."""
    ImageDraw.Draw(page).multiline_text(place, "\n".join(lines), INK, ImageFont.load_default(FONT_SIZE), spacing=3)
