"""The folder of the checkout, atomic writes, and readable file sizes."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]
UNITS = ("B", "kB", "MB", "GB", "TB")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def readable_size(num_bytes: float | int) -> str:
    """Return a number of bytes as text with a unit, in powers of 1000."""
    unit = 0
    while num_bytes >= 999.95 and unit < len(UNITS) - 1:
        num_bytes, unit = num_bytes / 1000, unit + 1
    return f"{num_bytes:.1f} {UNITS[unit]}" if unit else f"{num_bytes:.0f} B"
