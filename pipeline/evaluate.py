"""Measures a model on the test split and on benchmarks; writes metrics, tables, plots and a gallery."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

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
from pipeline.reporting.gallery import GalleryItem, Page, choose, render
from pipeline.reporting.plots import plots, png
from pipeline.reporting.tables import read_curve, replacing, write_tables
from pipeline.runtime.entry_point import run_command
from pipeline.shards.format import INDEX, checksum, read_index
from pipeline.sources.overlaps import PUBLISHED, shows_scene_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one task's model; after an error the old report is unchanged."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--shards", required=True, type=Path, help="folder of test shards")
    parser.add_argument("--validation", required=True, type=Path, help="folder of val shards, to choose windows on")
    parser.add_argument("--curve", required=True, type=Path, help="train.csv; if absent there is no training plot")
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
        if leak := _leak(args.shards.parent / PUBLISHED, benchmark.dataset):
            print(f"{args.task}: benchmark {benchmark.name} refused: {leak}", flush=True)
            continue
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
        items=[items[key] for key in reasons],
        plots=figures,
        degradation=index.recipe["degradation"],
        model=model.config,
        num_parameters=sum(weights.numel() for weights in model.parameters()),
        baseline=settings.baseline,
        local_statistics=model.local_statistics,
    )
    with replacing(args.out) as folder:
        write_tables(folder, evaluation, benchmarks, checksum(args.shards / INDEX), candidates)
        for name, figure in figures.items():
            (folder / f"{name}.png").write_bytes(png(figure))
        (folder / "gallery.html").write_text(render(page), encoding="utf-8")
        (folder / "explanation.html").write_text(_explanation(model, explained, args.task), encoding="utf-8")


def _how_to_get(benchmark: Benchmark) -> str:
    return f"`make data NAME={benchmark.dataset}` fetches the images" if benchmark.dataset else "Put the images there"


def _leak(record: Path, dataset: str | None) -> str:
    """Return why a benchmark of a published set says nothing about the model, which has seen its scenes; else ""."""
    if dataset is None or not record.is_file():
        return ""
    seen = [uri for uri in json.loads(record.read_text(encoding="utf-8")) if shows_scene_of(uri, dataset)]
    if not seen:
        return ""
    return (
        f"{len(seen)} images of the train and val splits show scenes of {dataset}, such as {seen[0]}. "
        f"To measure on it, leave them out: `without: [{dataset}]` in the entry of prepare.sources, and train again"
    )


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
