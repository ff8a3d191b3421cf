"""Runtimes that restore on a CPU, side by side: agreement with the network, time per tile, time to start.

    python -m benchmarks.runtimes [--networks laptop] [--runtimes OpenVINO] [--repeats 5]

Each network restores one tile of random pixels on one thread, all runtimes taking turns. The ratio of times within a
turn counts, so that other load on the machine affects all equally. Times to start are CPU time: `first` for a model
that was never prepared, `again` from the files that it left. torch.compile and AOTInductor need a C++ compiler.
Runtimes that are not installed are listed as such; openvino comes with dgunet[fast], onnxruntime with dgunet[export].
Both rows of OpenVINO use one file. Writes benchmarks/results/runtimes.md.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgunet.export import quiet, to_program, write_onnx
from dgunet.network import DGUNet, DGUNetConfig

RESULTS = Path(__file__).parent / "results" / "runtimes.md"
# The network of params.yaml, and the published one with three stages; side of the tile in pixels.
NETWORKS = {
    "laptop": (DGUNetConfig(width=16, growth=8, head_growth=8, num_stages=3, share_stages=False), 512),
    "published, 3 stages": (DGUNetConfig(num_stages=3), 256),
}
Run = Callable[[], Tensor]


@dataclass
class Case:
    """A network, a tile, and what the runtimes make of them.

    Attributes:
        network: a new one, whose corrections are scaled to the size of those of a trained network.
        tile: 1 C H W.
        folder: where runtimes write files.
    """

    network: DGUNet
    tile: Tensor
    folder: Path
    program: torch.export.ExportedProgram = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            for stage in (self.network.first, *self.network.between):
                stage.proximal.end.correct.weight.mul_(30)
            self.network.last.tail.weight.mul_(30)
        self.program = to_program(self.network)


def eager(case: Case, _: bool) -> Run:
    return lambda: case.network(case.tile)[-1]


def eager_bfloat16(case: Case, _: bool) -> Run | None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return case.network(case.tile)[-1].float()

    return run


def torch_compile(case: Case, _: bool) -> Run:
    torch._dynamo.reset()
    compiled = torch.compile(case.network)
    return lambda: compiled(case.tile)[-1]


def ahead_of_time(case: Case, again: bool) -> Run:
    file = str(case.folder / "model.pt2")
    if not again:
        torch._inductor.aoti_compile_and_package(case.program, package_path=file)
    program = torch._inductor.aoti_load_package(file)
    return lambda: program(case.tile)


def onnx_runtime(case: Case, again: bool) -> Run:
    import onnxruntime

    if not again:
        write_onnx(case.program, case.folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(case.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"image": case.tile.numpy()})[0])


def openvino(precision: str) -> Callable[[Case, bool], Run]:
    def prepare(case: Case, again: bool) -> Run:
        import openvino

        from dgunet.fast import write_graph

        file = case.folder / "graph.xml"
        if not file.exists():
            write_graph(case.network, file)
        properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
        graph = openvino.Core().compile_model(file, "CPU", properties)
        return lambda: torch.from_numpy(np.array(graph(case.tile.numpy())[0]))

    return prepare


RUNTIMES: Mapping[str, tuple[str, Callable[[Case, bool], Run | None]]] = {
    "eager": ("torch", eager),
    "eager, bfloat16": ("torch", eager_bfloat16),
    "torch.compile": ("torch", torch_compile),
    "AOTInductor": ("torch", ahead_of_time),
    "OpenVINO": ("openvino", openvino("f32")),
    "OpenVINO, bfloat16": ("openvino", openvino("bf16")),
    "ONNX Runtime": ("onnxruntime", onnx_runtime),
}


def cpu_time() -> float:
    """CPU time of this process and of those that it started and that have ended, in seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def started(prepare: Callable[[Case, bool], Run | None], case: Case, again: bool) -> tuple[Run | None, float]:
    """Return a function that restores the tile, and the CPU seconds of its start: to the first result, less one run."""
    start = cpu_time()
    run = prepare(case, again)
    if run is None:
        return None, 0.0
    run()
    middle = cpu_time()
    run()
    return run, 2 * middle - start - cpu_time()


def rows(name: str, wanted: Sequence[str], repeats: int) -> list[str]:
    """Measure one network and return its rows."""
    print(f"{name}: exporting", flush=True)
    config, side = NETWORKS[name]
    tile = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    lines, runs = {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        exporting = cpu_time()
        case = Case(DGUNet.with_seed(config, 0).eval(), tile, Path(folder))
        exporting = cpu_time() - exporting
        for runtime, (package, prepare) in RUNTIMES.items():
            if runtime not in wanted:
                continue
            print(f"{name}: {runtime}", flush=True)
            try:
                installed = version(package)
            except PackageNotFoundError:
                lines[runtime] = "not installed | | | | |"
                continue
            with quiet():
                run, first = started(prepare, case, False)
                again = started(prepare, case, True)[1] if run is not None and "eager" not in runtime else 0.0
            if run is None:
                lines[runtime] = "not on this CPU | | | | |"
                continue
            if runtime in ("ONNX Runtime", "AOTInductor"):  # they take the program that was exported before
                first += exporting
            runs[runtime] = run
            lines[runtime] = f"{installed} | {first:.0f} s | {f'{again:.1f} s' if again else ''} |"
        reference = runs["eager"]()
        times: dict[str, list[tuple[float, float]]] = {runtime: [] for runtime in runs}
        for turn in range(repeats):
            # The order alternates, so that none always meets another's warm or cold caches.
            for runtime, run in list(runs.items())[:: 1 if turn % 2 else -1]:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                times[runtime].append((time.process_time() - cpu, time.perf_counter() - wall))
        for runtime, run in runs.items():
            error = float((run() - reference).double().square().mean())
            agreement = f"{-10 * math.log10(error):.0f} dB" if error else "equal"
            speeds = [
                statistics.median(
                    base[axis] / own[axis] for base, own in zip(times["eager"], times[runtime], strict=True)
                )
                for axis in (0, 1)
            ]
            seconds = statistics.median(cpu for cpu, _ in times[runtime])
            lines[runtime] += f" {agreement} | {seconds:.2f} s | {speeds[0]:.2f} ({speeds[1]:.2f}) |"
    return [f"| {name}, {side}×{side} | {runtime} | {line}" for runtime, line in lines.items()]


def hardware() -> str:
    """Return name and vector instructions of this CPU."""
    entries = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    entries = {key.strip(): value.strip() for key, value in entries.items()}
    found = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(entries.get("flags", "").split())
    return f"{entries.get('model name', 'unknown')}, {os.cpu_count()} cores, {' '.join(sorted(found))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # compilers as child processes of this one, whose CPU time counts
    lines = [
        "# Runtimes on a CPU",
        "",
        "Written by `python -m benchmarks.runtimes`; its docstring says what is measured. "
        f"{hardware()}; one thread; medians of {options.repeats} turns. "
        "Agreement: PSNR against the eager network in float32. "
        "Speed: CPU time of the eager network over that of the runtime, in brackets the same of elapsed time.",
        "",
        "| network | runtime | version | start, first | start, again | agreement | CPU time | speed |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in options.networks:
        lines += rows(name, ["eager", *options.runtimes], options.repeats)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
