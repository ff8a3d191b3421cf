"""The three figures of a report: training curve, PSNR per stage, histogram of gains; the same data, the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.evaluation.scores import Evaluation

Curve = Sequence[Mapping[str, float | None]]
"""Rows of train.csv: step, loss, learning_rate, val_psnr; None where nothing was measured."""
Plot = Callable[[Any, "Palette"], None]


@dataclass(frozen=True)
class Palette:
    """Colours of a figure on light or on dark ground."""

    text: str
    faint: str
    accent: str
    second: str


ON_LIGHT = Palette(text="#22262b", faint="#b9c0c8", accent="#0b6e99", second="#c2571a")
ON_DARK = Palette(text="#dfe4ea", faint="#4a525c", accent="#5cc4ee", second="#f0935a")


def plots(evaluation: Evaluation, curve: Curve) -> dict[str, Plot]:
    """Return the figures by name, each a function that draws it into axes; no training curve without a `curve`."""
    sampled: dict[str, Plot] = {
        "stages": lambda axes, ink: _stages(axes, ink, evaluation),
        "gains": lambda axes, ink: _gains(axes, ink, evaluation),
    }
    return {"training": lambda axes, ink: _training(axes, ink, curve), **sampled} if curve else sampled


def png(plot: Plot) -> bytes:
    """Return the figure dark on white."""
    return _render(plot, ON_LIGHT, "png", {"Software": None}, facecolor="white", dpi=160)


def svg(plot: Plot, ink: Palette) -> bytes:
    """Return the figure on transparent ground, letters as outlines."""
    return _render(plot, ink, "svg", {"Date": None, "Creator": None}, transparent=True)


def _render(plot: Plot, ink: Palette, file_format: str, metadata: dict[str, None], **options: Any) -> bytes:
    style = {
        "svg.hashsalt": "dgunet",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": ink.text,
        "axes.labelcolor": ink.text,
        "axes.edgecolor": ink.faint,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": ink.text,
        "ytick.color": ink.text,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure.add_subplot(), ink)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=file_format, metadata=metadata, **options)
    return buffer.getvalue()


def _training(axes: Any, ink: Palette, curve: Curve) -> None:
    losses, psnrs = _measured(curve, "loss"), _measured(curve, "val_psnr")
    axes.set_title("Training")
    axes.set_xlabel("step")
    axes.plot(*zip(*losses, strict=True), color=ink.faint, linewidth=1) if losses else None
    axes.set_ylabel("loss")
    if losses and min(loss for _, loss in losses) > 0:
        axes.set_yscale("log")
    if psnrs:
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        right.plot(*zip(*psnrs, strict=True), color=ink.accent, marker="o", markersize=3, linewidth=1.5)
        right.set_ylabel("PSNR on the validation split, dB", color=ink.accent)
        right.tick_params(axis="y", colors=ink.accent)


def _measured(curve: Curve, column: str) -> list[tuple[float, float]]:
    rows = ((row["step"], row[column]) for row in curve)
    return [(step, value) for step, value in rows if step is not None and value is not None and math.isfinite(value)]


def _stages(axes: Any, ink: Palette, evaluation: Evaluation) -> None:
    axes.set_title("After each stage")
    axes.set_xlabel("stage")
    axes.set_ylabel("PSNR, dB")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = [stage.psnr for stage in evaluation.stages]
    axes.plot(range(1, len(values) + 1), values, color=ink.accent, marker="o", markersize=4, label="restored")
    for label, value, line in (
        ("baseline", evaluation.baseline.psnr, "--"),
        ("degraded", evaluation.degraded.psnr, ":"),
    ):
        if math.isfinite(value):
            axes.axhline(value, color=ink.second, linestyle=line, linewidth=1.2, label=label)
    axes.margins(y=0.15)
    axes.figure.legend(loc="outside lower center", ncols=3)  # inside, the line of the stages may cross it


def _gains(axes: Any, ink: Palette, evaluation: Evaluation) -> None:
    gains = [image.gain_db for image in evaluation.images if math.isfinite(image.gain_db)]
    axes.set_title("Gain of each test image")
    axes.set_xlabel("PSNR restored − degraded, dB")
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if gains:
        axes.hist(gains, bins=min(20, max(5, round(math.sqrt(len(gains))))), color=ink.accent, rwidth=0.92)
    axes.axvline(0, color=ink.second, linewidth=1.2)
