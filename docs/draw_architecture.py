"""Draws docs/architecture.png from the code: `python docs/draw_architecture.py`.

Reads dvc.yaml (stages, dependencies), pyproject.toml (layers) and the imports. What the picture shows is stored in the
PNG as JSON, under the key `Description`, so that a test can compare it with the code of today.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import matplotlib.pyplot as plt
import yaml
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

PROJECT = Path(__file__).parents[1]
PICTURE = PROJECT / "docs" / "architecture.png"
LAYER_NAMES = ("commands", "presentation", "services", "domain", "data", "foundation")
COLOURS = ("#e8e8ed", "#fde8d7", "#fbdfe3", "#dcebd9", "#d8e8f5", "#e6e0f2")
NETWORK_COLOUR = "#fff3c4"
FLOW = ("photographs", "manifest", "shards", "model", "reports", "registry")
INK, FAINT = "#22272e", "#9aa3ad"


def describe() -> dict[str, Any]:
    """Return what the picture shows: layers, packages, commands, and which command uses which package.

    `uses` holds for each command and package "dependency" if dvc.yaml lists the package, or a file of it, for the stage
    of that name, else "import" if the command imports it, directly or not. Packages that are not used are left out.
    """
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(one for one in contracts["contracts"] if one["name"].startswith("pipeline: "))["layers"]
    members = [[name.strip().removeprefix("pipeline.") for name in _split(layer)] for layer in layers]
    commands = [*stages, *(name for name in members[0] if name not in stages)]
    packages = {LAYER_NAMES[index]: names for index, names in enumerate(members) if index > 0}
    packages["dgunet"] = ["network", "images", "modules"]
    graph = grimp.build_graph("dgunet", "pipeline", cache_dir=None)
    uses = {}
    for command in commands:
        imported = {_package(name) for name in graph.find_upstream_modules(f"pipeline.{command}")} - {None}
        body = stages.get(command, {})
        listed = {_listed(path) for path in body.get("do", body).get("deps", ())} - {None}
        if "dgunet" in listed:
            listed |= {"network", "images", "modules"}
        names = [name for group in packages.values() for name in group]
        uses[command] = {
            name: "dependency" if name in listed else "import" for name in names if name in listed | imported
        }
    always = [name for name in stages if stages[name].get("always_changed")]
    return {"stages": list(stages), "always": always, "layers": packages, "uses": uses}


def _split(layer: str) -> list[str]:
    return layer.replace(" : ", " | ").split(" | ")


def _package(module: str) -> str | None:
    """Return the name by which the picture shows a module; None for commands and `__init__` files."""
    parts = module.split(".")
    if parts[0] == "pipeline":
        return parts[1] if len(parts) > 1 and (PROJECT / "pipeline" / parts[1]).is_dir() else None
    if len(parts) == 1:
        return None
    return parts[1] if (PROJECT / "dgunet" / parts[1]).is_dir() else "modules"


def _listed(path: str) -> str | None:
    """Return the name by which the picture shows an entry of `deps` that is code; None for data and commands."""
    parts = Path(path).parts
    if path == "dgunet":
        return "dgunet"
    if parts[0] == "dgunet":
        return parts[1] if (PROJECT / path).is_dir() else "modules"
    return parts[1] if parts[0] == "pipeline" and (PROJECT / path).is_dir() else None


def draw(shown: dict[str, Any], path: Path) -> None:
    """Write the picture, with `shown` in its metadata."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK})
    rows = sum(len(names) for names in shown["layers"].values())
    columns = len(shown["uses"]) + 4.05
    figure, axes = plt.subplots(figsize=(0.9 * columns, 8.4))
    axes.set_xlim(-4.0, columns - 4.0)
    axes.set_ylim(rows + 1.1, -3.6)
    axes.axis("off")
    _draw_flow(axes, shown)
    _draw_matrix(axes, shown)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Description": json.dumps(shown), "Software": None})
    plt.close(figure)


def _draw_flow(axes: Axes, shown: dict[str, Any]) -> None:
    """Draw the stages as boxes, what they hand on between them, and the tools at the right."""
    stages = shown["stages"]
    for number, command in enumerate(shown["uses"]):
        stage = number < len(stages)
        x = number + (0 if stage else 0.35)
        colour = COLOURS[0] if stage else "white"
        box = FancyBboxPatch(
            (x - 0.45, -2.0), 0.9, 0.95, boxstyle="round,pad=0,rounding_size=0.1", facecolor=colour, edgecolor=INK
        )
        axes.add_patch(box)
        name = command.replace("apply_recipe", "apply_\nrecipe")
        axes.text(x, -1.52, name, ha="center", va="center", weight="bold" if stage else "normal", size=7)
    for number, thing in enumerate(FLOW):
        x = number - 0.5
        axes.text(x, -3.25, thing, ha="center", va="center", size=8, style="italic")
        arrow = {"color": FAINT, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
        if number < len(stages):
            axes.annotate("", (x + 0.38, -2.08), (x + 0.05, -3.0), arrowprops={"arrowstyle": "-|>", **arrow})
        if number > 0:
            axes.annotate("", (x - 0.05, -3.0), (x - 0.38, -2.08), arrowprops={"arrowstyle": "-|>", **arrow})
    axes.text(-3.85, -1.52, "commands", va="center", weight="bold", size=10)
    axes.text(-2.1, -1.52, "files of pipeline/", va="center", size=8, color="#57606a")
    axes.text(len(stages) + 2.35, -2.5, "tools", ha="center", va="center", size=8.5, style="italic")


def _draw_matrix(axes: Axes, shown: dict[str, Any]) -> None:
    """Draw the layers as bands, one row for each package, one column for each command."""
    num_stages, right = len(shown["stages"]), len(shown["uses"]) - 0.15
    row = 0.0
    for index, (layer, packages) in enumerate(shown["layers"].items(), 1):
        colour = NETWORK_COLOUR if layer == "dgunet" else COLOURS[index]
        row += 0.5 if layer == "dgunet" else 0
        top = row - 0.5
        axes.add_patch(Rectangle((-4.0, top), right + 4.5, len(packages), facecolor=colour, edgecolor="white", lw=3))
        axes.text(-3.85, top + len(packages) / 2, layer, va="center", weight="bold", size=10)
        for name in packages:
            text = "other modules" if name == "modules" else f"{name}/"
            axes.text(-2.1, row, text, va="center", family="DejaVu Sans Mono", size=8.5)
            for number, uses in enumerate(shown["uses"].values()):
                if name in uses:
                    x = number + (0 if number < num_stages else 0.35)
                    filled = uses[name] == "dependency"
                    axes.plot(
                        x, row, "o", ms=9 if filled else 6.5, mfc=INK if filled else "white", mec=INK, mew=1, zorder=3
                    )
            row += 1
    low = row + 0.15
    legend = "an edit makes the stage stale (listed in dvc.yaml)", "imported, no dependency of the stage"
    for x, filled, text in zip((-2.0, 3.2), (True, False), legend, strict=True):
        axes.plot(x, low, "o", ms=9 if filled else 6.5, mfc=INK if filled else "white", mec=INK, mew=1)
        axes.text(x + 0.25, low, text, va="center", size=8.5)
    axes.text(-3.85, low, "imports go down", va="center", size=8.5, style="italic")
    for name in shown["always"]:
        axes.text(shown["stages"].index(name), -0.78, "runs always", ha="center", va="center", size=7)


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    draw(describe(), PICTURE)
    print(PICTURE.relative_to(PROJECT))
