"""One training step and one restoration of the derain DGUNet (width 40) beside the most direct eager implementation.

    python -m benchmarks.network [--threads 2] [--repeats 15] [--size 64] [--batch 2]

Both sides do the same work on the same weights, taking turns; what counts is the ratio within a turn, its median is
told, because other work on the machine then weighs on both alike. The answer goes to benchmarks/results/network.md.
"""

import argparse
import statistics
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
import reference_network  # noqa: E402 - the baseline lives with the tests, which hold it to be right

DERAIN = {"width": 40, "growth": 20, "head_growth": 16, "num_stages": 7, "share_stages": True}
RESULTS = HERE / "results" / "network.md"


def cases(batch: int, size: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What is measured: per name our function and the direct one."""
    generator = torch.Generator().manual_seed(0)
    weights = reference_network.random_weights(reference_network.shapes(**DERAIN), seed=0)
    learned = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    network = published.from_state_dict(weights)
    clean, degraded = torch.rand(2, batch, 3, size, size, generator=generator)
    photo = torch.rand(1, 3, 2 * size, 2 * size, generator=generator)
    ours_optimiser = torch.optim.Adam(network.parameters(), lr=0.0)
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
            lambda: step(lambda: network(degraded), ours_optimiser),
            lambda: step(lambda: reference_network.blind(learned, degraded, num_stages), direct_optimiser),
        ),
        f"restoration, 3 × {2 * size} × {2 * size}": (
            lambda: untracked(lambda: network(photo)),
            lambda: untracked(lambda: reference_network.blind(weights, photo, num_stages)),
        ),
    }


def ratios(ours: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Ours over the other, turn by turn after a first that does not count: wall clock, and time on the CPU."""
    wall, busy = [], []
    for turn in range(repeats + 1):
        # Who goes first alternates, so that neither always meets the other's warm or cold caches.
        spent = {function: measured(function) for function in ((ours, other) if turn % 2 else (other, ours))}
        if turn:
            wall.append(spent[ours][0] / spent[other][0])
            busy.append(spent[ours][1] / spent[other][1])
    return wall, busy


def measured(function: Callable[[], object]) -> tuple[float, float]:
    wall, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - busy


def cell(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 2), ("repeats", 15), ("size", 64), ("batch", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        "# The derain DGUNet on the CPU, beside the most direct eager implementation",
        "",
        f"Time of ours / time of the direct one, float32, {options.threads} threads, torch {torch.__version__}: median "
        f"(quartiles) of {options.repeats} turns. Below 1: ours is faster.",
        "",
        "| | wall clock | time on the CPU |",
        "|---|---|---|",
    ]
    for name, (ours, other) in cases(options.batch, options.size).items():
        wall, busy = ratios(ours, other, options.repeats)
        lines.append(f"| {name} | {cell(wall)} | {cell(busy)} |")
    text = "\n".join(lines) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
