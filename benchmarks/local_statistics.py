"""What windows for statistics change on a benchmark: mean, worst and best image of each candidate of params.yaml.

    python -m benchmarks.local_statistics --task derain --model models/derain --benchmark Rain100L [--images 10]

Takes images evenly from the benchmark. Needs its folder where DGUNET_DATA says (docs/datasets.md).
Adds its rows to benchmarks/results/local_statistics.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dgunet.checkpoint import load_model
from pipeline.config.params import load_task_section, read_params
from pipeline.evaluation.benchmarks import load_benchmark
from pipeline.evaluation.local_statistics import measure
from pipeline.evaluation.settings import Evaluate
from pipeline.synthesis.settings import Synthesize

RESULT = Path(__file__).parent / "results" / "local_statistics.md"
HEAD = """# Statistics over windows, against those of the whole image

Written by `python -m benchmarks.local_statistics`. PSNR in dB of the mean; gains in dB of the mean, the worst and the
best image.

| model | benchmark | images | statistics | PSNR | mean | worst | best |
|---|---|---:|---|---:|---:|---:|---:|
"""


def main() -> None:
    """Measure all candidates and add their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--benchmark", required=True, help="its name in params.yaml")
    parser.add_argument("--images", type=int, default=10, help="how many (default: 10)")
    args = parser.parse_args()
    settings: Evaluate = load_task_section(args.task, "evaluate", Evaluate)
    synthesize: Synthesize = load_task_section(args.task, "synthesize", Synthesize)
    benchmark = load_benchmark(read_params(), args.benchmark)
    if (missing := benchmark.absent()) is not None:
        raise SystemExit(f"no images in {missing}: set DGUNET_DATA; docs/datasets.md says where to get them")
    images = list(benchmark.pairs(synthesize.degradation, synthesize.channels, seed=0))
    step = max(1, len(images) // args.images)
    images = images[::step][: args.images]
    torch.set_num_threads(1)
    windows = [candidate.local_statistics() for candidate in settings.local_statistics]
    rows = []
    for found in measure(load_model(args.model), lambda: images, windows, benchmark.protocol):
        entry = found.as_json()
        gains = " | ".join(f"{entry[f'{name}_gain_db']:+.2f}" for name in ("mean", "worst", "best"))
        name = "whole image" if found.local is None else f"{found.local.window}: {', '.join(found.local.of)}"
        rows.append(f"| {args.task} | {args.benchmark} | {len(images)} | {name} | {found.psnr:.2f} | {gains} |")
        print(rows[-1], flush=True)
    if not RESULT.exists():
        RESULT.write_text(HEAD)
    with RESULT.open("a") as file:
        file.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
