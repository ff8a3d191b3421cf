"""Where the checkout lies, and how files are written: complete or not at all."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
