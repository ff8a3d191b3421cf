"""The numbers of a task's model on its test split and its benchmarks, as a table in benchmarks/results/tasks/TASK.md.

    make results TASK=derain                                  models/derain, which `make repro` trained
    make results TASK=derain MODEL=models:/derain@champion    a model at any address that dgunet takes

The numbers are those of `pipeline.evaluate`. For models/TASK, reports/TASK is used if DVC finds it up to date and it
has every benchmark whose images are present; otherwise it is made again. A model from elsewhere is measured on the
test split and the benchmarks of this checkout, with the windows for statistics that suit it on the val split.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from dgunet.checkpoint import read_card
from dgunet.config import DGUNetConfig
from dgunet.hub import model_folder
from dgunet.network import DGUNet
from pipeline import evaluate
from pipeline.config.params import load_task_section, read_params
from pipeline.evaluation.benchmarks import load_benchmark
from pipeline.evaluation.settings import Evaluate
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import write_atomically
from pipeline.training.optimizers import build_optimizers
from pipeline.training.settings import Train

RESULTS = Path(__file__).parent / "results" / "tasks"
KINDS = ("degraded", "baseline", "restored")


class Report(NamedTuple):
    """What `pipeline.evaluate` wrote: metrics.json, measurement.json, and the rows of per_image.csv."""

    metrics: Mapping[str, Any]
    measurement: Mapping[str, Any]
    images: Sequence[Mapping[str, str]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table of one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", help="address of a model; default: models/TASK, which `make repro` trained")
    args = parser.parse_args(arguments)
    settings = load_task_section(args.task, "evaluate", Evaluate)
    if args.model is None:
        folder, report = Path("models", args.task), built_report(args.task, settings)
        operations = training_operations(read_card(folder), load_task_section(args.task, "train", Train))
    else:
        folder, operations = model_folder(args.model), None  # how it was trained is not known here
        with tempfile.TemporaryDirectory() as temporary:
            measure(args.task, folder, Path(temporary))
            report = read_report(Path(temporary))
    text = page(
        args.task, args.model, report, read_card(folder), baseline=settings.baseline.kind, operations=operations
    )
    write_atomically(RESULTS / f"{args.task}.md", text)
    print(text)


def built_report(task: str, settings: Evaluate) -> Report:
    """Return the report of models/TASK, made again if it is not up to date; ValueError if there is no model."""
    if not Path("models", task).is_dir():
        raise ValueError(f"there is no models/{task}: name the task in `tasks` of params.yaml and run `make repro`")
    folder, stages = Path("reports", task), [f"{stage}@{task}" for stage in ("synthesize", "train", "evaluate")]
    stale = json.loads(dvc("status", "--json", *stages))
    if any(name != stages[-1] for name in stale):
        raise ValueError(f"models/{task} is not what params.yaml, data and code give today: run `make repro`")
    if stale or lacks_benchmarks(folder, settings):
        dvc("repro", "--force", "--single-item", stages[-1])
    return read_report(folder)


def lacks_benchmarks(folder: Path, settings: Evaluate) -> bool:
    """Return whether the images of a benchmark are present, but the report in `folder` does not have it."""
    metrics = read_report(folder).metrics
    missing = [name for name in settings.benchmarks if name not in {**metrics["benchmarks"], **metrics["not_measured"]}]
    return any(load_benchmark(read_params(), name).absent() is None for name in missing)


def measure(task: str, model: Path, out: Path) -> None:
    """Measure a model folder on the test split and the benchmarks of a task."""
    shards = Path("data/shards", task)
    if not shards.is_dir():
        raise ValueError(f"there is no {shards}, which has the test split: run `.venv/bin/dvc repro synthesize@{task}`")
    paths = {
        "model": model,
        "shards": shards / "test",
        "validation": shards / "val",
        "curve": out / "train.csv",
        "thumbnails": Path("data/thumbnails.npz"),
        "out": out,
    }
    evaluate.main(["--task", task, *(word for name, path in paths.items() for word in (f"--{name}", str(path)))])


def read_report(folder: Path) -> Report:
    """Return the report in a folder."""
    metrics, measurement = (json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "measurement"))
    with (folder / "per_image.csv").open(newline="", encoding="utf-8") as file:
        return Report(metrics, measurement, list(csv.DictReader(file)))


def training_operations(card: Mapping[str, Any], recipe: Train) -> float:
    """Return the floating-point operations of a training run, in 10^12: those of one step times the number of steps.

    The passes forward and backward and the products of matrices of the optimizer are counted; the loss and the
    measurements on the val split are not.
    """
    network = DGUNet(DGUNetConfig(**card["config"]))
    optimizers = build_optimizers(network, recipe)
    with FlopCounterMode(display=False) as counter:
        images = torch.rand(recipe.batch_size, network.config.image_channels, recipe.patch_size, recipe.patch_size)
        estimates = network(images if network.sensing is None else network.sense(images))
        torch.stack([estimate.sum() for estimate in estimates]).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    return float(counter.get_total_flops() * recipe.num_steps / 1e12)


def page(
    task: str, address: str | None, report: Report, card: Mapping[str, Any], *, baseline: str, operations: float | None
) -> str:
    """Return the table as Markdown."""
    metrics, measurement, provenance = report.metrics, report.measurement, card.get("provenance", {})
    command = f"make results TASK={task}" + (f" MODEL={address}" if address else "")
    named = {evaluate.TEST_SPLIT: metrics, **metrics["benchmarks"]}
    packages = ", ".join(f"{name} {version}" for name, version in measurement["packages"].items())
    return "\n".join(
        [
            f"# {task}",
            "",
            f"Written by `{command}`. Mean PSNR in dB and SSIM; gains in dB over the degraded image.",
            "",
            "| | images | degraded | baseline | restored | gain | 95 % interval | smallest gain | largest gain |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(_row(name, found, report.images) for name, found in named.items()),
            *(f"| {name} | not measured: {why['reason']} |" for name, why in metrics["not_measured"].items()),
            "",
            f"- Measured at commit {measurement['commit']}, on {measurement['hardware']}; {packages}.",
            f"- Model: {address or f'models/{task}'}, sha256 of the weights {card['weights_sha256']}; trained at "
            f"commit {provenance.get('commit', 'unknown')} on shards with index {provenance.get('data', 'unknown')}.",
            f"- Training: {'operations not known' if operations is None else f'{operations:.1f} TFLOP'}.",
            f"- Baseline: {baseline}.",
            f"- Intervals: {_method(metrics)}.",
            "",
            "| | protocol | sha256 of the images |",
            "|---|---|---|",
            *(f"| {name} | {one['protocol']} | {one['sha256']} |" for name, one in measurement["sets"].items()),
            "",
        ]
    )


def _row(name: str, found: Mapping[str, Any], images: Sequence[Mapping[str, str]]) -> str:
    qualities = (f"{found[kind]['psnr']:.2f} / {found[kind]['ssim']:.4f}" for kind in KINDS)
    interval = found["gain_interval"]
    between = "one photograph: none" if interval is None else f"{interval['low']:+.2f} to {interval['high']:+.2f}"
    label = "test" if name == evaluate.TEST_SPLIT else name
    gains = sorted((float(row["gain_db"]), row["key"]) for row in images if row["set"] == label)
    extremes = (f"{gain:+.2f} ({key})" for gain, key in (gains[0], gains[-1]))
    cells = (name, found["num_images"], *qualities, f"{found['gain_db']:+.2f}", between, *extremes)
    return f"| {' | '.join(map(str, cells))} |"


def _method(metrics: Mapping[str, Any]) -> str:
    intervals = [found["gain_interval"] for found in (metrics, *metrics["benchmarks"].values())]
    return next(
        (f"{one['method']}, {one['num_resamples']} resamples, seed {one['seed']}" for one in intervals if one), "none"
    )


def dvc(*arguments: str) -> str:
    """Run a command of DVC and return what it prints; CalledProcessError if it fails, after its message."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    run_command(main)
