"""Draws the plots of a report: training curve, PSNR per stage, histogram of gains. Equal data give equal bytes."""

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
"""Rows of train.csv: step, loss, learning_rate, val_psnr; None if the value was not measured."""
Plot = Callable[[Any, "Palette"], None]
LOGARITHMIC_FROM = 5  # largest loss / smallest; below it a logarithmic axis has at most one label


@dataclass(frozen=True)
class Palette:
    """Colours of a plot on a light or on a dark background."""

    text: str
    faint: str
    accent: str
    second: str


ON_LIGHT = Palette(text="#22262b", faint="#b9c0c8", accent="#0b6e99", second="#c2571a")
ON_DARK = Palette(text="#dfe4ea", faint="#4a525c", accent="#5cc4ee", second="#f0935a")


def plots(evaluation: Evaluation, curve: Curve) -> dict[str, Plot]:
    """Return the plots by name, each a function that draws into axes; the training curve only if `curve` has rows."""
    scores: dict[str, Plot] = {
        "stages": lambda axes, palette: _stages(axes, palette, evaluation),
        "gains": lambda axes, palette: _gains(axes, palette, evaluation),
    }
    return {"training": lambda axes, palette: _training(axes, palette, curve), **scores} if curve else scores


def png(plot: Plot) -> bytes:
    """Return a plot on a white background."""
    return _render(plot, ON_LIGHT, "png", {"Software": None}, facecolor="white", dpi=160)


def svg(plot: Plot, palette: Palette) -> bytes:
    """Return a plot on a transparent background, with text as outlines."""
    return _render(plot, palette, "svg", {"Date": None, "Creator": None}, transparent=True)


def _render(plot: Plot, palette: Palette, file_format: str, metadata: dict[str, None], **options: Any) -> bytes:
    style = {
        "svg.hashsalt": "dgunet",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": palette.text,
        "axes.labelcolor": palette.text,
        "axes.edgecolor": palette.faint,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": palette.text,
        "ytick.color": palette.text,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure.add_subplot(), palette)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=file_format, metadata=metadata, **options)
    return buffer.getvalue()


def _training(axes: Any, palette: Palette, curve: Curve) -> None:
    losses, psnrs = _without_short_end(_points(curve, "loss")), _points(curve, "val_psnr")
    axes.set_title("Training loss and validation PSNR")
    axes.set_xlabel("step")
    axes.plot(*zip(*losses, strict=True), color=palette.faint, linewidth=1) if losses else None
    axes.set_ylabel("loss")
    values = [loss for _, loss in losses]
    if values and max(values) > LOGARITHMIC_FROM * min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain_number)
        axes.yaxis.set_minor_formatter(_plain_number)
    if psnrs:
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        right.plot(*zip(*psnrs, strict=True), color=palette.accent, marker="o", markersize=3, linewidth=1.5)
        right.set_ylabel("validation PSNR in dB", color=palette.accent)
        right.tick_params(axis="y", colors=palette.accent)


def _plain_number(value: float, _: int | None) -> str:
    """Return the label of a tick on a logarithmic axis: 0.02, not 2 × 10⁻²; empty where labels would overlap."""
    digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
    return f"{value:g}" if digit in (1, 2, 3, 5, 7) else ""


def _without_short_end(losses: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out the last point if it is the mean of far fewer steps than the others, because it is noisier."""
    if len(losses) < 3:
        return losses
    before, last_but_one, last = (step for step, _ in losses[-3:])
    return losses[:-1] if last - last_but_one < (last_but_one - before) / 2 else losses


def _points(curve: Curve, column: str) -> list[tuple[float, float]]:
    rows = ((row["step"], row[column]) for row in curve)
    return [(step, value) for step, value in rows if step is not None and value is not None and math.isfinite(value)]


def _stages(axes: Any, palette: Palette, evaluation: Evaluation) -> None:
    axes.set_title("PSNR after each stage of the network")
    axes.set_xlabel("stage")
    axes.set_ylabel("PSNR in dB")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = [stage.psnr for stage in evaluation.stages]
    axes.plot(range(1, len(values) + 1), values, color=palette.accent, marker="o", markersize=4, label="restored")
    for label, value, line in (
        ("baseline", evaluation.baseline.psnr, "--"),
        ("degraded", evaluation.degraded.psnr, ":"),
    ):
        if math.isfinite(value):
            axes.axhline(value, color=palette.second, linestyle=line, linewidth=1.2, label=label)
    axes.margins(y=0.15)
    axes.figure.legend(loc="outside lower center", ncols=3)  # inside the axes the curve may cross it


def _gains(axes: Any, palette: Palette, evaluation: Evaluation) -> None:
    gains = [image.gain_db for image in evaluation.images if math.isfinite(image.gain_db)]
    axes.set_title("PSNR gain of the test images")
    axes.set_xlabel("gain (restored − degraded) in dB")
    axes.set_ylabel("number of images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if gains:
        axes.hist(gains, bins=min(20, max(5, round(math.sqrt(len(gains))))), color=palette.accent, rwidth=0.92)
    axes.axvline(0, color=palette.second, linewidth=1.2)
