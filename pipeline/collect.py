"""Lists stored data that nothing needs, with sizes, and deletes it after a question: `make gc`.

Data is needed if a commit of this clone, a copy of dvc.lock in DGUNET_STORAGE, the dvc.lock of this checkout, a
registered version or a live run refers to it. Data that was changed within a week is kept too, because another clone
may have pushed it. Nothing is deleted while any of these cannot be read.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.retention.collection import collect, delete
from pipeline.retention.items import Item, Place
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import readable_size

MOST_ROWS = 40  # for each place
HEADER = ("what", "name", "size", "last changed")


def main(arguments: Sequence[str] | None = None) -> None:
    """List the data that is not needed, ask, and delete it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.collect", description=__doc__)
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    args = parser.parse_args(arguments)
    root = Path.cwd()
    places = collect(root, time.time())
    print(report(places))
    if not any(place.items for place in places):
        return
    if not args.yes and not _confirmed():
        print("nothing is deleted" + ("" if sys.stdin.isatty() else "; to delete without a question: `make gc YES=1`"))
        return
    print(f"deleted: {readable_size(delete(places, root, time.time()))}")


def report(places: Sequence[Place]) -> str:
    """Return a table of all items with their sizes, and a line on what is kept in each place."""
    rows = [row for place in places for row in _rows(place)]
    lines = []
    if rows:
        widths = [max(len(row[column]) for row in (HEADER, *rows)) for column in range(len(HEADER))]
        lines = [
            _line(HEADER, widths),
            "  ".join("-" * width for width in widths),
            *(_line(row, widths) for row in rows),
        ]
        lines.append("")
    for place in places:
        total = sum(item.size for item in place.items)
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(place.kept.items())) or "nothing"
        size = f" ({readable_size(place.kept_bytes)})" if place.kept_bytes else ""
        lines.append(f"{place.kind} in {place.address}: {readable_size(total)} can be deleted; kept: {reasons}{size}")
        lines += place.notes
    total = sum(item.size for place in places for item in place.items)
    lines.append(f"{readable_size(total)} can be deleted" if rows else "there is nothing to delete")
    return "\n".join(lines)


def _rows(place: Place) -> list[tuple[str, ...]]:
    items = sorted(place.items, key=lambda item: (-item.size, item.name))
    rows: list[tuple[str, ...]] = [
        (place.kind, item.name, readable_size(item.size), _date(item)) for item in items[:MOST_ROWS]
    ]
    if rest := items[MOST_ROWS:]:
        rows.append((place.kind, f"and {len(rest)} more", readable_size(sum(item.size for item in rest)), ""))
    return rows


def _date(item: Item) -> str:
    return datetime.datetime.fromtimestamp(item.modified, datetime.UTC).date().isoformat()


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    what, name, size, date = row
    return f"{what:{widths[0]}}  {name:{widths[1]}}  {size:>{widths[2]}}  {date}".rstrip()


def _confirmed() -> bool:
    return sys.stdin.isatty() and input("delete? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    run_command(main)
