"""Prints a table of results, one line per task, from the reports of evaluate and promote; and what to run next."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.params import load_section
from pipeline.runtime.entry_point import run_command

PHOTO = "skimage/data/chelsea.png"  # one of the starter photographs
HEADER = ("task", "degraded", "baseline", "restored", "gain in dB", "95 % interval", "champion")


@dataclass(frozen=True)
class Result:
    """One task's metrics.json, and its promote.json if there is one."""

    task: str
    metrics: Mapping[str, Any]
    promotion: Mapping[str, Any] | None

    @property
    def champion(self) -> str | None:
        """Version of the registered champion, None if there is none."""
        version = (self.promotion or {}).get("champion_version")
        return None if version is None else str(version)


def read_results(reports: Path, tasks: Sequence[str] | None = None) -> list[Result]:
    """Return the results in `reports`, in the order of `tasks` (None: all, by name); ValueError if there is none."""
    if tasks is None:
        tasks = sorted(path.parent.name for path in reports.glob("*/metrics.json"))
    folders = [reports / task for task in tasks if (reports / task / "metrics.json").is_file()]
    found = [
        Result(folder.name, json.loads((folder / "metrics.json").read_text()), _read(folder / "promote.json"))
        for folder in folders
    ]
    if not found:
        raise ValueError(f"there are no results in {reports}: run `make repro`")
    return found


def summary(results: Sequence[Result], reports: Path) -> str:
    """Return the table, why models did not become champion or were not measured, and what to run next."""
    rows = [HEADER, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [
        f"{result.task}: did not become champion: {result.promotion.get('reason', 'no reason given')}"
        for result in results
        if result.promotion is not None and not result.promotion.get("alias_moved") and result.promotion.get("reason")
    ]
    lines += [
        f"{result.task}: {name} not measured: {refused['reason']}"
        for result in results
        for name, refused in result.metrics.get("not_measured", {}).items()
    ]
    best = next((result for result in results if result.champion is not None), results[0])
    model = f"models:/{best.task}@champion" if best.champion is not None else f"models/{best.task}"
    return "\n".join(
        [
            *lines,
            "",
            f"see the images:       open {reports / best.task / 'gallery.html'} in a browser",
            f"restore a photo:      .venv/bin/dgunet restore {_photo()} restored/ --model {model}",
            "train on your photos: name their folder under prepare.sources in params.yaml, then run `make repro`",
        ]
    )


def _row(result: Result) -> tuple[str, ...]:
    psnrs = (result.metrics[kind]["psnr"] for kind in ("degraded", "baseline", "restored"))
    numbers = ("-" if psnr is None else f"{psnr:.2f}" for psnr in psnrs)
    gain, interval = result.metrics["gain_db"], result.metrics.get("gain_interval")
    between = "-" if interval is None else f"{interval['low']:+.2f} to {interval['high']:+.2f}"
    return (result.task, *numbers, "-" if gain is None else f"{gain:+.2f}", between, result.champion or "none")


def _photo() -> str:
    """Return a photograph to try, relative to the current directory; a placeholder if none is installed."""
    for folder in map(Path, sys.path):
        if (folder / PHOTO).is_file():
            return os.path.relpath(folder / PHOTO)
    return "PHOTO..."


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the summary of a folder of reports."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.summary", description=__doc__)
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder of one folder per task")
    args = parser.parse_args(arguments)
    print(summary(read_results(args.reports, load_section("tasks", list)), args.reports))


if __name__ == "__main__":
    run_command(main)
