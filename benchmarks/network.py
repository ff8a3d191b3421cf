"""One training step and two restorations of the derain DGUNet (width 40) beside the most direct eager implementation.

    python -m benchmarks.network [--isa native avx2] [--threads 1] [--repeats 15] [--size 64] [--batch 2]

Both sides do the same work on the same weights, taking turns. The ratio of their CPU time within a turn counts, so that
other load on the machine affects both equally. `avx2` limits torch, oneDNN and MKL to AVX2 instructions; each kind is
measured in a process of its own, as they read this when they are loaded. Writes benchmarks/results/network.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dgunet import published
from dgunet.losses import stage_loss

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import reference_network  # noqa: E402 - the baseline is in tests/, which check it

DERAIN = {"width": 40, "growth": 20, "head_growth": 16, "num_stages": 7, "share_stages": True}
RESULTS = HERE / "results" / "network.md"
KINDS = {
    "native": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def cases(batch: int, size: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return for each case the function of this network and that of the direct implementation."""
    generator = torch.Generator().manual_seed(0)
    weights = reference_network.random_weights(reference_network.shapes(**DERAIN), seed=0)
    learned = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    network = published.from_state_dict(weights)
    clean, degraded = torch.rand(2, batch, 3, size, size, generator=generator)
    photos = [torch.rand(1, 3, side, side, generator=generator) for side in (2 * size, 4 * size)]
    network_optimiser = torch.optim.Adam(network.parameters(), lr=0.0)
    direct_optimiser = torch.optim.Adam(learned.values(), lr=0.0)

    def step(forward: Callable[[], Sequence[Tensor]], optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        stage_loss(forward(), clean).backward()
        optimiser.step()

    def untracked(forward: Callable[[], object]) -> None:
        with torch.inference_mode():
            forward()

    num_stages = DERAIN["num_stages"]
    return {
        f"training step, {batch} × 3 × {size} × {size}": (
            lambda: step(lambda: network(degraded), network_optimiser),
            lambda: step(lambda: reference_network.blind(learned, degraded, num_stages), direct_optimiser),
        ),
        **{
            f"restoration, {' × '.join(map(str, photo.shape))}": (
                lambda photo=photo: untracked(lambda: network(photo)),
                lambda photo=photo: untracked(lambda: reference_network.blind(weights, photo, num_stages)),
            )
            for photo in photos
        },
    }


def speeds(measured: Callable[[], object], other: Callable[[], object], repeats: int) -> list[float]:
    """CPU time of the direct implementation over the network, turn by turn after a first that does not count."""
    found = []
    for turn in range(repeats + 1):
        # Who goes first alternates, so that neither always meets the other's warm or cold caches.
        spent = {function: cpu_time(function) for function in ((measured, other) if turn % 2 else (other, measured))}
        if turn:
            found.append(spent[other] / spent[measured])
    return found


def cpu_time(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def cell(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.2f} ({low:.2f}–{high:.2f})"


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Return what torch finds in this CPU, and per case the speeds of the turns."""
    torch.set_num_threads(options.threads)
    found = {
        name: speeds(measured, other, options.repeats)
        for name, (measured, other) in cases(options.batch, options.size).items()
    }
    return {"capability": torch.backends.cpu.get_cpu_capability(), "speeds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 1), ("repeats", 15), ("size", 64), ("batch", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--isa", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    columns = {}
    for kind in options.isa:
        command = [sys.executable, "-m", "benchmarks.network", "--child"]
        for name in ("threads", "repeats", "size", "batch"):
            command += [f"--{name}", str(getattr(options, name))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), **KINDS[kind]}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        columns[f"{found['capability']}{'' if kind == 'native' else ', limited to it'}"] = found["speeds"]
    lines = [
        "# The derain DGUNet on the CPU, beside the most direct eager implementation",
        "",
        f"CPU time of the direct one / CPU time of this network, float32, threads: {options.threads}, "
        f"torch {torch.__version__}: median (quartiles) of {options.repeats} turns. Above 1: this network is faster.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    lines += [
        f"| {name} | " + " | ".join(cell(found[name]) for found in columns.values()) + " |"
        for name in next(iter(columns.values()))
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
