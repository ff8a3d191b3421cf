"""What restoration costs and gains on a CPU, for one model: stages, self-ensemble, precisions and runtimes.

    python -m benchmarks.speed_quality --task denoise --model models/denoise --benchmark "CBSD68 σ 25" [--images 12]

Takes images evenly from the benchmark. The last eight only calibrate int8; every method in turn restores each of the
others, on one thread. PSNR by the benchmark's protocol; CPU time of the process, without the time to start. All
methods take statistics of the whole image, which graphs need. Left out are graphs that agree with the network too
little for `dgunet restore`, and runtimes that are not installed: openvino comes with dgunet[fast], onnxruntime with
dgunet[export]. Writes benchmarks/results/speed_quality.md and .png.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dgunet.checkpoint import load_model, read_card
from dgunet.export import lower_precision, run_graph, to_program, write_onnx
from dgunet.hub import model_folder
from dgunet.inference import restore
from dgunet.network import DGUNet
from pipeline.config.params import load_task_section, read_params
from pipeline.evaluation.benchmarks import load_benchmark
from pipeline.evaluation.quality import measure
from pipeline.reporting.plots import ON_LIGHT
from pipeline.runtime.provenance import commit, processor
from pipeline.synthesis.settings import Synthesize

RESULT = Path(__file__).parent / "results" / "speed_quality.md"
NUM_CALIBRATION = 8
Image = Float32[np.ndarray, "H W C"]
Restore = Callable[[Image], Image]


class Found(NamedTuple):
    """What one way to restore gave: PSNR and its gain over the degraded images in dB, CPU seconds per megapixel."""

    name: str
    psnr: float
    gain: float
    agreement: float
    seconds: float


def ways(model: DGUNet, calibration: Sequence[Image], folder: Path) -> dict[str, Restore]:
    """Return the ways to restore an image, by name; the first is the one that others are compared with."""
    all_stages = model.config.num_stages
    whole = partial(restore, model, statistics="whole")
    found: dict[str, Restore] = {f"all {all_stages} stages": whole}
    found |= {f"--stages {count}": partial(whole, num_stages=count) for count in range(all_stages - 1, 0, -1)}
    found["--self-ensemble"] = partial(whole, self_ensemble=True)
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if has_bfloat16:
        found["--precision bfloat16"] = partial(whole, precision="bfloat16")
    if find_spec("openvino"):
        from dgunet.fast import load_graph

        found["--fast"] = partial(whole, fast=load_graph(model))
        if has_bfloat16:
            try:
                found["--fast --precision bfloat16"] = partial(whole, fast=load_graph(model, None, "bfloat16"))
            except ValueError as error:
                print(error, flush=True)
    if find_spec("onnxruntime"):
        program, images = to_program(model), [as_batch(image) for image in calibration]
        for precision in ("float32", "float16", "int8"):
            made = folder / precision
            made.mkdir()
            write_onnx(program, made)
            if precision != "float32":
                lower_precision(made / "model.onnx", precision, images)
            run = run_graph(made / "model.onnx", num_threads=1)
            found[f"ONNX Runtime, {precision}"] = partial(by_graph, run)
    return found


def by_graph(run: Callable[[np.ndarray], np.ndarray], image: Image) -> Image:
    """Restore an image by a graph that was exported."""
    return np.ascontiguousarray(run(as_batch(image))[0].transpose(1, 2, 0))


def as_batch(image: Image) -> Float32[np.ndarray, "1 C H W"]:
    """Return the image as a graph takes it."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def table(found: Sequence[Found]) -> list[str]:
    """Return the rows of the table."""
    base = found[0]
    rows = []
    for one in found:
        agreement = "" if one is base else "equal" if math.isinf(one.agreement) else f"{one.agreement:.0f} dB"
        change = "" if one is base else f"{one.psnr - base.psnr:+.2f}"
        rows.append(
            f"| {one.name} | {one.psnr:.2f} | {one.gain:+.2f} | {change} | {agreement} | {one.seconds:.2f} | "
            f"{base.seconds / one.seconds:.2f} |"
        )
    return rows


def plot(found: Sequence[Found], title: str, file: Path) -> None:
    """Draw speed and PSNR of each way as bars, in the order of the table."""
    figure = Figure(figsize=(8, 0.34 * len(found) + 1.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    speed, change = figure.subplots(1, 2, sharey=True)
    base, rows = found[0], range(len(found))
    colours = [ON_LIGHT.second if one is base else ON_LIGHT.accent for one in found]
    speeds = [base.seconds / one.seconds for one in found]
    changes = [one.psnr - base.psnr for one in found]
    for axes, values, text in ((speed, speeds, "{:.2f}"), (change, changes, "{:+.2f}")):
        bars = axes.barh(rows, values, color=colours, height=0.65)
        axes.bar_label(bars, [text.format(round(value, 2) + 0.0) for value in values], padding=3, fontsize=8)
        axes.margins(x=0.16)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    speed.set_yticks(rows, [one.name for one in found])
    speed.invert_yaxis()
    speed.set_xlabel(f"speed on one thread of a CPU, {base.name} = 1", fontsize=8)
    change.axvline(0, color="0.5", linewidth=0.8)
    change.set_xlabel(f"change of PSNR in dB, from {base.psnr:.2f}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file)


def main() -> None:
    """Measure all ways, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", required=True, help="address of a model")
    parser.add_argument("--benchmark", required=True, help="its name in params.yaml")
    parser.add_argument("--images", type=int, default=12, help="how many (default: 12)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    synthesize: Synthesize = load_task_section(args.task, "synthesize", Synthesize)
    benchmark = load_benchmark(read_params(), args.benchmark)
    if (missing := benchmark.absent()) is not None:
        raise SystemExit(f"no images in {missing}: set DGUNET_DATA; docs/datasets.md says where to get them")
    pairs = list(benchmark.pairs(synthesize.degradation, synthesize.channels, seed=0))
    wanted = args.images + NUM_CALIBRATION
    if len(pairs) < wanted:
        raise SystemExit(f"{args.benchmark} has {len(pairs)} images, {wanted} are needed")
    pairs = pairs[:: len(pairs) // wanted][:wanted]
    measured, others = pairs[: args.images], pairs[args.images :]
    torch.set_num_threads(1)
    folder = model_folder(args.model)
    model = load_model(folder)
    with tempfile.TemporaryDirectory() as temporary:
        methods = ways(model, [pair.degraded for pair in others], Path(temporary))
        psnrs: dict[str, list[float]] = {name: [] for name in methods}
        errors: dict[str, list[float]] = {name: [] for name in methods}
        seconds = dict.fromkeys(methods, 0.0)
        degraded, pixels = [], 0
        for name, way in methods.items():  # the first image of each size takes longer
            print(name, flush=True)
            way(measured[0].degraded)
        for pair in measured:
            print(pair.key, flush=True)
            pixels += pair.clean.shape[0] * pair.clean.shape[1]
            degraded.append(measure(benchmark.protocol, pair.degraded, pair.clean, was_gray=pair.was_gray).psnr)
            base = None
            for name, way in methods.items():
                start = time.process_time()
                restored = way(pair.degraded)
                seconds[name] += time.process_time() - start
                base = restored if base is None else base
                errors[name].append(float(np.square((restored - base).astype(np.float64)).mean()))
                quality = measure(benchmark.protocol, restored, pair.clean, was_gray=pair.was_gray)
                psnrs[name].append(quality.psnr)
    found = []
    for name in methods:
        error, mean = fmean(errors[name]), fmean(psnrs[name])
        agreement = -10 * math.log10(error) if error else math.inf
        found.append(Found(name, mean, mean - fmean(degraded), agreement, seconds[name] / pixels * 1e6))
    card = read_card(folder)
    lines = [
        "# What restoration costs and gains",
        "",
        "Written by `python -m benchmarks.speed_quality`; its docstring says what is measured. "
        f"Task {args.task}, {args.images} images of {args.benchmark}, degraded {fmean(degraded):.2f} dB; "
        f"weights {card['weights_sha256'][:12]}, {model.config.num_stages} stages, width {model.config.width}; "
        f"commit {commit()}; {processor()}, {os.cpu_count()} cores, one thread. PSNR and gain over the degraded image "
        "in dB; change and agreement (a PSNR): against the first row; speed: CPU time of the first row over that of "
        "the row.",
        "",
        f"![PSNR against speed]({args.out.with_suffix('.png').name})",
        "",
        "| | PSNR | gain | change | agreement | CPU s per megapixel | speed |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *table(found),
    ]
    plot(found, f"{args.task}, {args.images} images of {args.benchmark}", args.out.with_suffix(".png"))
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
