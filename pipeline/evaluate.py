"""Measures a model on the test split and on benchmarks; writes metrics, tables, plots and a gallery."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dgunet.checkpoint import load_model
from dgunet.explanation import explain
from dgunet.explanation_page import central, render_explanation
from dgunet.network import DGUNet
from pipeline.config.params import load_section, load_task_section, read_params
from pipeline.dataloader.pairs import EvaluationPair, pairs
from pipeline.degradations.parsing import parse_degradation
from pipeline.evaluation.benchmarks import Benchmark, load_benchmark
from pipeline.evaluation.local_statistics import choose as choose_windows
from pipeline.evaluation.local_statistics import measure
from pipeline.evaluation.scores import Evaluation, evaluate, restore_pair
from pipeline.evaluation.settings import Evaluate
from pipeline.preparation.leaks import Leak, photograph_leak, published_leak
from pipeline.preparation.near_duplicates import thumbnail
from pipeline.reporting.gallery import GalleryItem, Page, choose, render
from pipeline.reporting.plots import plots, png
from pipeline.reporting.tables import read_curve, replacing, write_tables
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.provenance import commit, processor
from pipeline.shards.format import INDEX, checksum, read_index

MEASUREMENT = "measurement.json"
TEST_SPLIT = "test split"
PACKAGES = ("torch", "numpy", "opencv-python")  # they compute


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one task's model; after an error the old report is unchanged."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--shards", required=True, type=Path, help="folder of test shards")
    parser.add_argument("--validation", required=True, type=Path, help="folder of val shards, to choose windows on")
    parser.add_argument("--curve", required=True, type=Path, help="train.csv; if absent there is no training plot")
    parser.add_argument("--thumbnails", required=True, type=Path, help="of the photographs of the manifest (.npz)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the report to write")
    args = parser.parse_args(arguments)

    settings: Evaluate = load_task_section(args.task, "evaluate", Evaluate)
    seed: int = load_section("seed", int)
    model = load_model(args.model).to("cuda" if torch.cuda.is_available() else "cpu")

    windows = [tried.local_statistics() for tried in settings.local_statistics]
    candidates = measure(model, lambda: pairs(args.validation), windows, settings.protocol)
    model.local_statistics = choose_windows(candidates)

    index = read_index(args.shards)
    degradation = parse_degradation(index.recipe["degradation"])
    images = _with_progress(pairs(args.shards), f"evaluate {args.task}", index.samples)
    evaluation = evaluate(model, images, settings.baseline, settings.protocol)
    benchmarks: dict[str, Evaluation] = {}
    not_measured: dict[str, Leak] = {}
    data = {TEST_SPLIT: checksum(args.shards / INDEX)}
    params = read_params()
    for benchmark in (load_benchmark(params, name) for name in settings.benchmarks):
        if (missing := benchmark.absent()) is not None:
            print(
                f"{args.task}: benchmark {benchmark.name} skipped: {missing} is not available. {_how_to_get(benchmark)}"
                ", or set DGUNET_DATA to the folder that holds them (docs/datasets.md); then run "
                f".venv/bin/dvc repro --force --single-item evaluate@{args.task}",
                flush=True,
            )
            continue
        if leak := _leak(args.shards.parent, args.thumbnails, benchmark):
            not_measured[benchmark.name] = leak
            print(
                f"{args.task}: benchmark {benchmark.name} refused: {leak.reason}. To measure on it, {leak.remedy}",
                flush=True,
            )
            continue
        data[benchmark.name] = benchmark.sha256()
        images = _with_progress(benchmark.pairs(degradation, int(index.recipe["channels"]), seed), benchmark.name)
        benchmarks[benchmark.name] = evaluate(model, images, settings.baseline, benchmark.protocol)

    reasons = choose(evaluation, settings.gallery_images)
    scores = {image.key: image for image in evaluation.images}
    items = {
        pair.key: GalleryItem(
            reasons[pair.key],
            scores[pair.key],
            restore_pair(model, pair, settings.baseline, settings.protocol.self_ensemble),
            pair.record["degradation"],
        )
        for pair in pairs(args.shards)
        if pair.key in reasons
    }
    median = [key for key, reason in reasons.items() if reason == "median gain"] or list(reasons)
    explained = next(pair for pair in pairs(args.shards) if pair.key == median[0])
    figures = plots(evaluation, read_curve(args.curve))
    page = Page(
        task=args.task,
        evaluation=evaluation,
        benchmarks=benchmarks,
        not_measured=not_measured,
        items=[items[key] for key in reasons],
        plots=figures,
        degradation=index.recipe["degradation"],
        model=model.config,
        num_parameters=sum(weights.numel() for weights in model.parameters()),
        baseline=settings.baseline,
        local_statistics=model.local_statistics,
    )
    with replacing(args.out) as folder:
        write_tables(folder, evaluation, benchmarks, data[TEST_SPLIT], candidates, not_measured=not_measured)
        measured = {TEST_SPLIT: evaluation, **benchmarks}
        (folder / MEASUREMENT).write_text(json.dumps(_measurement(model, measured, data), indent=2) + "\n")
        for name, figure in figures.items():
            (folder / f"{name}.png").write_bytes(png(figure))
        (folder / "gallery.html").write_text(render(page), encoding="utf-8")
        (folder / "explanation.html").write_text(_explanation(model, explained, args.task), encoding="utf-8")


def _how_to_get(benchmark: Benchmark) -> str:
    return f"`make data NAME={benchmark.dataset}` fetches the images" if benchmark.dataset else "Put the images there"


def _leak(shards: Path, thumbnails: Path, benchmark: Benchmark) -> Leak | None:
    """Return why a benchmark says nothing about the model, which was trained on its scenes; else None."""
    if leak := published_leak(shards, benchmark.dataset):
        return leak
    images = {name: thumbnail(image) for name, image in benchmark.clean_images()}
    return photograph_leak(shards, thumbnails, benchmark.name, images)


def _measurement(model: DGUNet, measured: Mapping[str, Evaluation], data: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides the numbers beside model and data: the content of measurement.json.

    It has no date: the stage writes the same bytes each time, so that its outputs in dvc.lock do not change.
    """
    device = next(model.parameters()).device
    return {
        "commit": commit(),
        "hardware": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "packages": {name: version(name) for name in PACKAGES},
        "sets": {
            name: {"protocol": str(evaluation.protocol), "sha256": data[name]} for name, evaluation in measured.items()
        },
    }


def _explanation(model: DGUNet, pair: EvaluationPair, task: str) -> str:
    """Return the page of what each stage does to one image, in its middle if it is large."""
    rows, columns = central(*pair.clean.shape[:2])
    clean = pair.clean[rows, columns]
    given = clean if model.sensing is not None else pair.degraded[rows, columns]
    fact = f"Task {task}, an image of the test split; {clean.shape[1]}x{clean.shape[0]} pixels of its middle."
    return render_explanation(explain(model, given, clean), title=pair.key, facts=[fact], clean=clean)


def _with_progress(images: Iterable[EvaluationPair], name: str, number: int | None = None) -> Iterator[EvaluationPair]:
    yield from tqdm(images, name, number, unit="image", disable=None)


if __name__ == "__main__":
    run_command(main)
