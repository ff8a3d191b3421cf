"""Reports a search: a table, a figure, and a proposed recipe for `make apply`.

The figure has two plots: parallel coordinates, with a line per trial through all its values that is darker for a higher
val PSNR; and the best val PSNR so far against the number of the trial.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.tuning.space import nested
from pipeline.tuning.trial import Trial

TABLE, FIGURE, PROPOSAL = "trials.csv", "tune.png", "proposal.yaml"
SOUND = ("finished", "stopped")
MEASURED = ("outcome", "best_psnr", "steps", "seconds")


def write(folder: Path, task: str, name: str, first: Mapping[str, Any] | None, trials: Sequence[Trial]) -> None:
    """Write trials.csv, tune.png and, when a trial has a result, proposal.yaml into `folder`.

    Args:
        folder: created if it is missing.
        task: task whose recipe was searched.
        name: name of the search.
        first: the values of params.yaml, if they were tried.
        trials: the trials in the order of their start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).write_text(_csv(trials), encoding="utf-8")
    (folder / PROPOSAL).unlink(missing_ok=True)
    (folder / FIGURE).write_bytes(_figure(task, trials))
    if winner := best(trials):
        (folder / PROPOSAL).write_text(_proposal(task, name, first, trials, winner), encoding="utf-8")


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest val PSNR, the earliest of equal ones; None if no trial has a result.

    Trials that diverged or failed do not count, whatever they reached before: the recipe would diverge or fail again.
    """
    return max(_sound(trials), key=lambda trial: trial.best_psnr, default=None)


def _sound(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if math.isfinite(trial.best_psnr) and trial.outcome in SOUND]


def table(trials: Sequence[Trial]) -> str:
    """Return the trials as lines of text, the best first, those that diverged or failed last."""
    sound = sorted(_sound(trials), key=lambda trial: -trial.best_psnr)
    ranked = [*sound, *(trial for trial in trials if trial not in sound)]
    names = list(trials[0].values) if trials else []
    rows = [["trial", *names, "val PSNR", "steps", "outcome"]]
    rows += [
        [str(t.number), *(_short(t.values[n]) for n in names), f"{t.best_psnr:.2f} dB", str(t.steps), t.outcome]
        for t in ranked
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _csv(trials: Sequence[Trial]) -> str:
    text = io.StringIO()
    names = list(trials[0].values) if trials else []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *names, *MEASURED, "failure"])
    for trial in trials:
        measured = [getattr(trial, name) for name in MEASURED]
        writer.writerow([trial.number, *trial.values.values(), *measured, trial.failure.partition("\n")[0]])
    return text.getvalue()


def _proposal(task: str, name: str, first: Mapping[str, Any] | None, trials: Sequence[Trial], winner: Trial) -> str:
    lines = [
        f"# Proposed by the search {name}: trial {winner.number} of {len(trials)},",
        f"# {winner.best_psnr:.2f} dB mean PSNR on the val split after {winner.steps} steps ({winner.outcome}).",
    ]
    asked = next((trial for trial in trials if trial.values == first), None)
    if asked is not None and math.isfinite(asked.best_psnr):
        lines.append(f"# The values of params.yaml (trial {asked.number}): {asked.best_psnr:.2f} dB ({asked.outcome}).")
    content = {task: {"train": nested(winner.values)}}
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False)


def _figure(task: str, trials: Sequence[Trial]) -> bytes:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _parallel_coordinates(left, trials)
    _best_so_far(right, trials)
    figure.suptitle(f"search of {task}: PSNR on the val split", fontsize=11)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _parallel_coordinates(axes: Any, trials: Sequence[Trial]) -> None:
    measured = sorted(_sound(trials), key=lambda trial: trial.best_psnr)
    names = list(trials[0].values) if trials else []
    columns = [[trial.values[name] for trial in measured] for name in names]
    columns.append([trial.best_psnr for trial in measured])
    heights = [_heights(column) for column in columns]
    scale = Normalize(columns[-1][0], columns[-1][-1]) if measured else Normalize()
    for row, trial in enumerate(measured):
        colour = colormaps["viridis_r"](0.15 + 0.85 * float(scale(trial.best_psnr)))
        line = [column[row] for column in heights]
        axes.plot(range(len(line)), line, color=colour, linewidth=2.2 if row == len(measured) - 1 else 1.1)
    for place, column in enumerate(columns if measured else []):
        axes.axvline(place, color="#b9c0c8", linewidth=0.8, zorder=0)
        ends = dict(zip(heights[place], column, strict=True))
        for height, value in ends.items():
            if isinstance(value, str) or height in (min(ends), max(ends)):
                axes.annotate(_short(value), (place, height), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(columns)), [*names, "val PSNR in dB"], fontsize=8)
    axes.set_yticks([])
    axes.margins(x=0.12, y=0.08)
    axes.spines[:].set_visible(False)


def _best_so_far(axes: Any, trials: Sequence[Trial]) -> None:
    measured = _sound(trials)
    numbers = [trial.number for trial in measured]
    so_far = [max(t.best_psnr for t in measured[: place + 1]) for place in range(len(measured))]
    axes.step(numbers, so_far, where="post", color="#0b6e99", label="best so far")
    axes.plot(numbers, [t.best_psnr for t in measured], "o", color="#c2571a", markersize=4, label="trial")
    axes.set_xlabel("trial")
    axes.set_ylabel("dB")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _heights(column: Sequence[Any]) -> list[float]:
    """Return positions between 0 and 1: by rank for names, by logarithm for ranges wider than a factor of 20."""
    if any(isinstance(value, str | bool) for value in column):
        order = sorted(set(map(str, column)))
        return [order.index(str(value)) / max(1, len(order) - 1) for value in column]
    low, high = min(column, default=0), max(column, default=1)
    if low > 0 and high / low > 20:
        return [math.log(value / low) / math.log(high / low) for value in column]
    return [(value - low) / (high - low) if high > low else 0.5 for value in column]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
